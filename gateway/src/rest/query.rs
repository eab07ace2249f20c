//! The part of an address behind `?`, of which nothing is passed over.

use super::problem::Problem;

/// Refuses names that mean nothing here.
pub fn known(query: &[(String, String)], names: &[&str]) -> Result<(), Problem> {
    match query.iter().find(|(name, _)| !names.contains(&name.as_str())) {
        None => Ok(()),
        Some((name, _)) => {
            let takes = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            Err(Problem::invalid(format!("there is no parameter {name:?} here"))
                .hint(format!("it takes {takes}")))
        }
    }
}
