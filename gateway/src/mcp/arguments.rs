//! Parts of arguments that several tools share.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{problem::Problem, text};

/// How bytes are written in a text of JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The text itself.
    #[default]
    Text,
    /// For bytes that are no text.
    Base64,
}

impl Encoding {
    pub fn decode(self, field: &str, value: String) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Text => Ok(value.into_bytes()),
            Self::Base64 => text::from_base64(&value).map_err(|error| {
                Problem::new(
                    format!("{field} is no base64: {error}"),
                    "write it in standard base64, or leave `encoding` out for text",
                )
            }),
        }
    }
}

/// A time span in seconds as an argument: more than none, at most a day.
pub fn seconds(field: &str, value: f64) -> Result<Duration, Problem> {
    const MOST: f64 = 86_400.0;
    if value.is_finite() && value > 0.0 && value <= MOST {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(Problem::new(
        format!("{field} is {value}"),
        format!("give seconds: more than 0, at most {MOST}; run_background has no limit"),
    ))
}

/// A count of bytes within bounds.
pub fn bytes(field: &str, value: Option<u64>, usual: u64, most: u64) -> Result<usize, Problem> {
    match value.unwrap_or(usual) {
        value if (1..=most).contains(&value) => Ok(value as usize),
        value => Err(Problem::new(
            format!("{field} is {value}"),
            format!("give 1 to {most}, and ask again from a later offset for more"),
        )),
    }
}
