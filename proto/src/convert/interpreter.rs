//! Contexts and executions: what is asked for.

use super::{bounds, env, no_nul, optional_limit, path, request_id};
use crate::{
    domain::{ContextSpec, Execution, KernelChoice, Timeout},
    error::{Code, Error, Reason},
    v1,
};

/// What is started where nothing is said.
const EXECUTABLE: &str = "python3";

impl TryFrom<v1::CreateContextRequest> for ContextSpec {
    type Error = Error;
    fn try_from(wire: v1::CreateContextRequest) -> Result<Self, Error> {
        if !matches!(wire.language.as_str(), "" | "python") {
            let shown: String = wire.language.chars().take(64).collect();
            let message = format!("there is no interpreter of {shown:?} here");
            return Err(Error::new(Code::Unimplemented, Reason::Unsupported, message)
                .hint("contexts speak \"python\"; other languages can be run as tasks"));
        }
        no_nul("executable", &wire.executable)?;
        if wire.executable.len() > bounds::PATH {
            return Err(Error::invalid("executable", "is longer than a path may be")
                .hint("a path in the session, or a name to look up in PATH"));
        }
        let kernel = match v1::Kernel::try_from(wire.kernel) {
            Ok(v1::Kernel::Unspecified) => KernelChoice::Best,
            Ok(v1::Kernel::Ipykernel) => KernelChoice::Ipykernel,
            Ok(v1::Kernel::Builtin) => KernelChoice::Builtin,
            Err(_) => {
                return Err(Error::invalid("kernel", format!("{} is no kernel", wire.kernel))
                    .hint("leave it out for the best that there is"));
            }
        };
        Ok(Self {
            cwd: if wire.cwd.is_empty() { String::new() } else { path("cwd", wire.cwd)? },
            env: env("env", wire.env)?,
            kernel,
            executable: match wire.executable.as_str() {
                "" => EXECUTABLE.to_owned(),
                _ => wire.executable,
            },
            request_id: request_id(wire.request_id)?,
        })
    }
}

impl TryFrom<v1::ExecuteRequest> for Execution {
    type Error = Error;
    fn try_from(wire: v1::ExecuteRequest) -> Result<Self, Error> {
        if wire.code.len() > bounds::CODE {
            return Err(Error::invalid(
                "code",
                format!("{} bytes are more than {}", wire.code.len(), bounds::CODE),
            )
            .hint("write it to a file in the session, and run that: exec(open(path).read())"));
        }
        let output_limit = match wire.output_limit {
            0 => bounds::EXECUTION_OUTPUT_DEFAULT,
            n if n <= bounds::EXECUTION_OUTPUT_MAX => n,
            n => {
                let most = bounds::EXECUTION_OUTPUT_MAX;
                return Err(Error::invalid("output_limit", format!("{n} is more than {most}"))
                    .hint("let the code write what is larger to a file, and read that"));
            }
        };
        let timeout = match optional_limit("timeout", wire.timeout)? {
            None => Timeout::Default,
            Some(None) => Timeout::Never,
            Some(Some(after)) => Timeout::After(after),
        };
        let env = env("env", wire.env)?;
        Ok(Self { code: wire.code, timeout, output_limit, env, request_id: request_id(wire.request_id)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_is_can_be_asked_for() {
        let create = |wire: v1::CreateContextRequest| ContextSpec::try_from(wire);
        let spec = create(v1::CreateContextRequest::default()).unwrap();
        assert_eq!((spec.executable.as_str(), spec.kernel), ("python3", KernelChoice::Best));
        let other = v1::CreateContextRequest { language: "cobol".into(), ..Default::default() };
        assert_eq!(create(other).unwrap_err().code(), Code::Unimplemented);
        for bad in [
            v1::CreateContextRequest { kernel: 9, ..Default::default() },
            v1::CreateContextRequest { executable: "a\0".into(), ..Default::default() },
            v1::CreateContextRequest { cwd: "a\0".into(), ..Default::default() },
            v1::CreateContextRequest { request_id: "x".repeat(200), ..Default::default() },
        ] {
            assert_eq!(create(bad).unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn code_and_its_output_are_bounded() {
        let execute = |wire: v1::ExecuteRequest| Execution::try_from(wire);
        let fits = v1::ExecuteRequest { code: "x".repeat(bounds::CODE), ..Default::default() };
        assert_eq!(execute(fits).unwrap().output_limit, 4 << 20);
        for bad in [
            v1::ExecuteRequest { code: "x".repeat(bounds::CODE + 1), ..Default::default() },
            v1::ExecuteRequest { output_limit: (16 << 20) + 1, ..Default::default() },
            v1::ExecuteRequest { env: [("a=b".into(), "c".into())].into(), ..Default::default() },
            v1::ExecuteRequest { env: [("a".into(), "\0".into())].into(), ..Default::default() },
        ] {
            assert_eq!(execute(bad).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
