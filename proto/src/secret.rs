//! Secrets that tasks are given: how they are named, and how their values go from the coordinator, which alone has them,
//! beside the request to whoever starts the task. A value is in no type that is shown, hashed, written down or listed: not
//! in a task's spec, but beside it, and only in the messages that start one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    domain::{Labels, SecretUse, TaskSpec},
    error::{Error, Reason},
    v1::{self, secret_value::Is},
};

/// Where tasks find those that they are given as files.
pub const DIR: &str = "/run/secrets";
/// Bytes of a name.
pub const NAME_MAX: usize = 64;
/// Bytes of a value: as a variable it fits into what the kernel takes for one.
pub const VALUE_MAX: usize = 64 << 10;
/// Secrets of one task.
pub const USES_MAX: usize = 32;
/// Bytes of the values of one task's: all of them have to fit beside its environment.
pub const TOTAL_MAX: usize = 512 << 10;

/// A secret's name: good for a file, and for a command line.
///
/// # Errors
/// INVALID_ARGUMENT with `field`.
pub fn name(field: &str, name: String) -> Result<String, Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(good) || name.starts_with('-') {
        let shown: String = name.chars().take(NAME_MAX).collect();
        return Err(Error::invalid(field, format!("{shown:?} is no secret's name"))
            .hint(format!("1 to {NAME_MAX} of A-Z, a-z, 0-9, _ and -, and no - at the beginning")));
    }
    Ok(name)
}

/// Refuses more secrets than one task can have.
///
/// # Errors
/// INVALID_ARGUMENT with `task.secrets`.
pub fn at_most(uses: usize) -> Result<(), Error> {
    if uses <= USES_MAX {
        return Ok(());
    }
    Err(Error::invalid("task.secrets", format!("{uses} are more than {USES_MAX}"))
        .hint("put what belongs together into one secret"))
}

/// What a task asks for.
pub(crate) fn uses(wire: Vec<v1::SecretUse>) -> Result<Vec<SecretUse>, Error> {
    at_most(wire.len())?;
    let (mut files, mut variables) = (BTreeSet::new(), BTreeSet::new());
    let mut one = |wire: v1::SecretUse| {
        let name = name("task.secrets.name", wire.name)?;
        let env = match wire.env {
            env if env.is_empty() => None,
            env if env.contains(['=', '\0']) || env.len() > NAME_MAX * 4 => {
                return Err(Error::invalid("task.secrets.env", format!("{env:?} is no variable's name"))
                    .hint("a name has no `=` in it; leave it out for a file"));
            }
            env => Some(env),
        };
        let first = match &env {
            None => files.insert(name.clone()),
            Some(env) => variables.insert(env.clone()),
        };
        if !first {
            let what =
                env.map_or_else(|| format!("the file {DIR}/{name}"), |env| format!("the variable {env}"));
            return Err(
                Error::invalid("task.secrets", format!("{what} is named twice")).hint("once is enough")
            );
        }
        Ok(SecretUse { name, env })
    };
    wire.into_iter().map(&mut one).collect()
}

/// What a task is given, by where it finds it. It has no `Debug`: nothing shows it.
#[derive(Clone, Default)]
pub struct Given {
    /// Variable → value.
    pub env: Labels,
    /// Name → content.
    pub files: BTreeMap<String, Bytes>,
}

impl Given {
    /// The secrets that a spec asks for, out of those that came with the request.
    ///
    /// # Errors
    /// FAILED_PRECONDITION (SECRET_UNUSABLE) with the name of the first that can't be had, or that does not fit any more.
    pub fn of(spec: &TaskSpec, came: &[v1::SecretValue]) -> Result<Self, Error> {
        let mut given = Self::default();
        let mut total = 0;
        for wanted in &spec.secrets {
            let found =
                came.iter().find(|value| value.name == wanted.name).and_then(|value| value.is.as_ref());
            let value = match found {
                Some(Is::Value(value)) => value,
                Some(Is::Unusable(why)) => return Err(unusable(&wanted.name, why)),
                None => return Err(unusable(&wanted.name, "only the coordinator has secrets")),
            };
            total += value.len();
            if total > TOTAL_MAX {
                return Err(unusable(&wanted.name, &too_much()).hint("give the task fewer, or smaller ones"));
            }
            match &wanted.env {
                None => {
                    given.files.insert(wanted.name.clone(), value.clone());
                }
                Some(variable) => {
                    let text = std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'));
                    let text = text.ok_or_else(|| {
                        unusable(&wanted.name, "it is no text, so no variable can hold it: take it as a file")
                    })?;
                    given.env.insert(variable.clone(), text.to_owned());
                }
            }
        }
        Ok(given)
    }
}

/// Why one more than fits can't be had.
pub fn too_much() -> String {
    format!("with it the task's secrets have more than {TOTAL_MAX} bytes")
}

/// A secret that a task can't be given.
pub fn unusable(name: &str, why: &str) -> Error {
    Error::precondition(Reason::SecretUnusable, format!("the secret {name}: {why}")).with("secret", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(secrets: Vec<v1::SecretUse>) -> Result<TaskSpec, Error> {
        let program = Some(v1::task_spec::Program::Shell("true".into()));
        v1::TaskSpec { program, secrets, ..Default::default() }.try_into()
    }

    fn wanted(name: &str, env: &str) -> v1::SecretUse {
        v1::SecretUse { name: name.into(), env: env.into() }
    }

    fn value(name: &str, is: Is) -> v1::SecretValue {
        v1::SecretValue { name: name.into(), is: Some(is) }
    }

    #[track_caller]
    fn refused(secrets: Vec<v1::SecretUse>, what: &str) {
        let error = spec(secrets).map(|_| ()).unwrap_err();
        assert!(error.message().contains(what), "{error:?}");
    }

    #[test]
    fn a_name_leads_nowhere() {
        for bad in ["", ".", "..", "a/b", "a.b", "-x", "a b", "\0", "é", &"x".repeat(65)] {
            assert!(name("name", bad.to_owned()).is_err(), "{bad:?}");
        }
        for good in ["a", "_", "NPM_TOKEN", "db-password", &"x".repeat(64)] {
            assert!(name("name", good.to_owned()).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_asked_for_once() {
        refused(vec![wanted("a", ""), wanted("a", "")], "/run/secrets/a is named twice");
        refused(vec![wanted("a", "V"), wanted("b", "V")], "variable V is named twice");
        refused(vec![wanted("a", "A=B")], "no variable's name");
        refused(vec![wanted("../a", "")], "no secret's name");
        refused((0..33).map(|n| wanted(&format!("a{n}"), "")).collect(), "more than 32");
        assert!(spec(vec![wanted("a", ""), wanted("a", "A"), wanted("a", "B")]).is_ok());
    }

    #[test]
    fn each_goes_where_it_was_asked_for() {
        let spec = spec(vec![wanted("a", ""), wanted("a", "A"), wanted("raw", "")]).unwrap();
        let came = [value("a", Is::Value("1".into())), value("raw", Is::Value(vec![0, 255].into()))];
        let given = Given::of(&spec, &came).unwrap();
        assert_eq!(given.env, Labels::from([("A".to_owned(), "1".to_owned())]));
        assert_eq!(given.files["a"], "1");
        assert_eq!(given.files["raw"], vec![0, 255]);
    }

    /// Red when nothing adds them up.
    #[test]
    fn one_task_is_given_so_much_and_no_more() {
        let most = TOTAL_MAX / VALUE_MAX;
        let given = |count: usize| {
            let names: Vec<String> = (0..count).map(|n| format!("a{n}")).collect();
            let spec = spec(names.iter().map(|name| wanted(name, "")).collect()).unwrap();
            let full = || Is::Value(vec![b'x'; VALUE_MAX].into());
            let came: Vec<_> = names.iter().map(|name| value(name, full())).collect();
            Given::of(&spec, &came).map(|given| given.files.len())
        };
        assert_eq!(given(most).ok(), Some(most));
        let error = given(most + 1).unwrap_err();
        assert_eq!(error.reason(), Reason::SecretUnusable);
        assert!(error.message().contains(&format!("the secret a{most}: ")), "{error:?}");
    }

    #[test]
    fn what_can_not_be_had_is_named() {
        let one = |env: &str, came: &[v1::SecretValue]| {
            let spec = spec(vec![wanted("a", env)]).unwrap();
            Given::of(&spec, came).map(|_| ()).unwrap_err()
        };
        for (error, why) in [
            (one("", &[]), "only the coordinator"),
            (one("", &[value("b", Is::Value("1".into()))]), "only the coordinator"),
            (one("", &[value("a", Is::Unusable("it has expired".into()))]), "it has expired"),
            (one("A", &[value("a", Is::Value(vec![255].into()))]), "no text"),
            (one("A", &[value("a", Is::Value("x\0".into()))]), "no text"),
        ] {
            assert_eq!(
                (error.code(), error.reason()),
                (crate::Code::FailedPrecondition, Reason::SecretUnusable)
            );
            assert!(
                error.message().starts_with("the secret a: ") && error.message().contains(why),
                "{error:?}"
            );
        }
    }
}
