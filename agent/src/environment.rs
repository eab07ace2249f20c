//! What a program finds around it: its environment, its arguments, its directory. An
//! allow-list: nothing of the agent's own environment gets through.

use std::path::PathBuf;

use berth_proto::{
    agent_config::{AgentConfig, TASK_PATH},
    domain::{Labels, Program, TaskSpec},
    trace::TraceContext,
};

use crate::{launch, wire::Spawn};

/// What all tasks of a sandbox have in common.
pub struct Environment {
    user: String,
    home: String,
    workspace: PathBuf,
    shell: &'static str,
}

impl Environment {
    /// Looks for the shell once: the root does not change under a session.
    pub fn new(config: &AgentConfig) -> Self {
        Self {
            user: config.user.name.clone(),
            home: config.user.home.to_string_lossy().into_owned(),
            workspace: config.workspace.clone(),
            shell: if launch::is_executable(c"/bin/bash") { "/bin/bash" } else { "/bin/sh" },
        }
    }

    fn variables(
        &self,
        session: &Labels,
        spec: &TaskSpec,
        secrets: &Labels,
        trace: Option<TraceContext>,
    ) -> Labels {
        // What a session installs for itself (`pip install`) is found by its name.
        let path = format!("{}/.local/bin:{TASK_PATH}", self.home);
        let mut env: Labels = [
            ("PATH", path.as_str()),
            ("HOME", &self.home),
            ("USER", &self.user),
            ("LOGNAME", &self.user),
            ("SHELL", self.shell),
            ("LANG", "C.UTF-8"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if spec.pty.is_some() {
            env.insert("TERM".to_owned(), "xterm-256color".to_owned());
        }
        // A program that is traced itself goes on where we are. Not in a trace that nobody keeps: it would keep none either.
        if let Some(trace) = trace.filter(|trace| trace.is_sampled()) {
            env.insert("TRACEPARENT".to_owned(), trace.to_string());
        }
        env.extend(
            session.iter().chain(&spec.env).chain(secrets).map(|(name, value)| (name.clone(), value.clone())),
        );
        env
    }

    /// The whole of what a task's first process needs.
    /// `trace`: the task's own span, if its request is traced.
    pub fn spawn(
        &self,
        session: &Labels,
        spec: &TaskSpec,
        secrets: &Labels,
        trace: Option<TraceContext>,
    ) -> Spawn {
        let env = self.variables(session, spec, secrets, trace);
        let argv = match &spec.program {
            Program::Argv(args) => args.clone(),
            Program::Shell(line) => vec![self.shell.to_owned(), "-c".to_owned(), line.clone()],
        };
        let path = env.get("PATH").map_or(TASK_PATH, String::as_str);
        let program = argv.first().map_or("", String::as_str);
        Spawn {
            pty: spec.pty.is_some(),
            cwd: self.workspace.join(&spec.cwd).into_os_string().into_encoded_bytes(),
            programs: launch::candidates(program, path),
            argv: argv.into_iter().map(String::into_bytes).collect(),
            env: env.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1;

    fn environment() -> Environment {
        Environment { user: "user".into(), home: "/h".into(), workspace: "/w".into(), shell: "/bin/sh" }
    }

    fn spec(wire: v1::TaskSpec) -> TaskSpec {
        let program = v1::task_spec::Program::Shell("echo $A".into());
        TaskSpec::try_from(v1::TaskSpec { program: Some(program), ..wire }).unwrap()
    }

    fn text(list: &[Vec<u8>]) -> Vec<String> {
        list.iter().map(|bytes| String::from_utf8(bytes.clone()).unwrap()).collect()
    }

    #[test]
    fn only_what_is_listed_and_secrets_go_last() {
        let session =
            Labels::from([("A".to_owned(), "session".to_owned()), ("B".to_owned(), "b".to_owned())]);
        let spec = spec(v1::TaskSpec {
            env: [("A".to_owned(), "task".to_owned()), ("HOME".to_owned(), "/mine".to_owned())].into(),
            ..Default::default()
        });
        let secrets = Labels::from([("B".to_owned(), "secret".to_owned())]);
        let spawn = environment().spawn(&session, &spec, &secrets, Some(TraceContext::begin()));
        assert_eq!(
            text(&spawn.env),
            [
                "A=task",
                "B=secret",
                "HOME=/mine",
                "LANG=C.UTF-8",
                "LOGNAME=user",
                &format!("PATH=/h/.local/bin:{TASK_PATH}"),
                "SHELL=/bin/sh",
                "USER=user"
            ]
        );
        assert_eq!(text(&spawn.argv), ["/bin/sh", "-c", "echo $A"]);
        assert_eq!(text(&spawn.programs), ["/bin/sh"]);
    }

    /// A program that looks for it goes on with the trace, unless the caller has said otherwise.
    #[test]
    fn a_trace_that_is_kept_goes_on_in_the_task() {
        let kept = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let spec = spec(v1::TaskSpec { env, ..Default::default() });
            let spawn = environment().spawn(&Labels::new(), &spec, &Labels::new(), kept.parse().ok());
            text(&spawn.env).into_iter().filter(|line| line.starts_with("TRACEPARENT=")).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [format!("TRACEPARENT={kept}")]);
        assert_eq!(of(&[("TRACEPARENT", "mine")]), ["TRACEPARENT=mine"]);
        // One that nobody keeps does not go on.
        let spec = spec(v1::TaskSpec::default());
        let unkept = Some(TraceContext::begin());
        let spawn = environment().spawn(&Labels::new(), &spec, &Labels::new(), unkept);
        assert!(!text(&spawn.env).iter().any(|line| line.starts_with("TRACEPARENT=")));
    }

    #[test]
    fn the_directory_is_below_the_workspace_or_absolute() {
        let of = |cwd: &str| {
            let spec = spec(v1::TaskSpec { cwd: cwd.into(), ..Default::default() });
            String::from_utf8(environment().spawn(&Labels::new(), &spec, &Labels::new(), None).cwd).unwrap()
        };
        assert_eq!(of("/abs"), "/abs");
        assert_eq!(of("a/b"), "/w/a/b");
        assert_eq!(of(""), "/w/");
    }
}
