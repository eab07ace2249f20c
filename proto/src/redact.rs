//! What a log must never show, however it comes to be logged: the values of environment
//! variables, and tokens. Types that hold such values have no derived `Debug`; theirs is
//! here, and shows names only. `build.rs` names the messages that are left to this file.

use std::{collections::HashMap, fmt};

use crate::{
    domain::{ContextSpec, CreateSession, Labels, Placement, TaskSpec},
    v1,
};

/// An environment: the names, and that there are values.
pub struct Names<'a, M>(pub &'a M);

impl fmt::Debug for Names<'_, Labels> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for Names<'_, HashMap<String, String>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.0.keys().collect();
        names.sort();
        f.debug_set().entries(names).finish()
    }
}

/// A token: whether there is one.
struct Token<'a>(&'a str);

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(not shown)" })
    }
}

/// `Debug` that shows the fields that are named here, the last of them wrapped. A field that
/// is added later is not shown until somebody has decided that it may be.
macro_rules! debug {
    ($type:ty: $($shown:ident)* $(; $wrap:ident: $($hidden:ident)*)?) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self { $($shown,)* $($($hidden,)*)? .. } = self;
                let mut all = f.debug_struct(stringify!($type));
                $(all.field(stringify!($shown), $shown);)*
                $($(all.field(stringify!($hidden), &$wrap($hidden));)*)?
                all.finish_non_exhaustive()
            }
        }
    };
}

debug!(TaskSpec: program cwd timeout output_limit spool_bytes pty stdin detached reattach_grace secrets;
    Names: env);
debug!(CreateSession: request_id template limits labels ttl idle_timeout worker_selector priority
    wait_for_place patient task_defaults; Names: env);
debug!(Placement: session epoch template limits created_at expires_at expires_in idle_timeout
    task_defaults start_timeout; Names: env);
debug!(v1::TaskSpec: program cwd timeout output_limit spool_bytes pty pty_size stdin detached
    reattach_grace secrets; Names: env);
debug!(v1::CreateSessionRequest: request_id template limits labels ttl idle_timeout worker_selector
    priority wait_for_place task_defaults; Names: env);
debug!(v1::PlaceSession: session_id epoch template limits expires_at expires_in idle_timeout
    task_defaults start_timeout created_at; Names: env);
debug!(ContextSpec: cwd kernel executable request_id; Names: env);
debug!(v1::CreateContextRequest: session_id language cwd kernel executable request_id; Names: env);
debug!(v1::ConfigureRequest: session_id epoch task_defaults ttl_left idle_timeout; Names: env);
debug!(v1::Welcome: incarnation lease heartbeat_interval data_connections end templates; Token: data_token
    credential);
debug!(v1::DataPreface: worker_id incarnation; Token: data_token);
debug!(v1::CreateTokenResponse: token; Token: value);
debug!(v1::SecretValue: name);
debug!(v1::SetSecretRequest: tenant name ttl);

impl fmt::Debug for v1::secret_value::Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "Value({} bytes)", value.len()),
            Self::Unusable(why) => f.debug_tuple("Unusable").field(why).finish(),
        }
    }
}

/// Not a secret, but its message is on the list, and prost takes that for both.
impl fmt::Debug for v1::task_spec::Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argv(argv) => f.debug_tuple("Argv").field(&argv.args).finish(),
            Self::Shell(line) => f.debug_tuple("Shell").field(line).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert;

    const SECRET: &str = "s3cr3t-value";

    fn env() -> HashMap<String, String> {
        [("API_KEY".to_owned(), SECRET.to_owned())].into()
    }

    #[track_caller]
    fn hidden(value: impl fmt::Debug, name: &str) {
        let shown = format!("{value:?} {value:#?}");
        assert!(!shown.contains(SECRET), "{shown}");
        assert!(shown.contains(name), "{shown}");
    }

    #[test]
    fn what_holds_an_environment_shows_its_names_only() {
        let task = v1::TaskSpec {
            program: Some(v1::task_spec::Program::Shell("true".into())),
            env: env(),
            ..Default::default()
        };
        let create = v1::CreateSessionRequest { env: env(), ..Default::default() };
        hidden(v1::RunRequest { task: Some(task.clone()), ..Default::default() }, "API_KEY");
        hidden(TaskSpec::try_from(task).unwrap(), "API_KEY");
        hidden(create.clone(), "API_KEY");
        hidden(CreateSession::try_from(create).unwrap(), "API_KEY");
        hidden(v1::ConfigureRequest { env: env(), ..Default::default() }, "API_KEY");
        hidden(v1::CreateContextRequest { env: env(), ..Default::default() }, "API_KEY");
        let place = v1::PlaceSession { env: env(), ..Default::default() };
        let message = v1::coordinator_message::Message::Place(place);
        hidden(v1::CoordinatorMessage { message: Some(message), ..Default::default() }, "API_KEY");
    }

    #[test]
    fn a_placement_shows_the_names_of_its_environment_only() {
        let placement = Placement {
            restore: None,
            fenced: false,
            checkpoint_on_drain: false,
            egress: Default::default(),
            session: crate::SessionId::new(),
            epoch: crate::Epoch(1),
            template: convert_template(),
            limits: crate::domain::Limits { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, pids: 1 },
            env: env().into_iter().collect(),
            created_at: std::time::SystemTime::UNIX_EPOCH,
            expires_at: None,
            expires_in: None,
            idle_timeout: None,
            task_defaults: Default::default(),
            start_timeout: convert::bounds::GRACE_DEFAULT,
        };
        hidden(placement, "API_KEY");
    }

    fn convert_template() -> crate::domain::TemplateSpec {
        v1::TemplateSpec { name: "base".into(), ..Default::default() }.try_into().unwrap()
    }

    #[test]
    fn a_token_is_never_shown() {
        hidden(v1::Welcome { data_token: SECRET.into(), ..Default::default() }, "data_token");
        hidden(v1::Welcome { credential: SECRET.into(), ..Default::default() }, "credential");
        hidden(v1::CreateTokenResponse { value: SECRET.into(), ..Default::default() }, "value");
        let value = v1::secret_value::Is::Value(SECRET.into());
        hidden(value.clone(), "Value");
        let given = v1::SecretValue { name: "npm".into(), is: Some(value) };
        hidden(v1::RunRequest { secrets: vec![given], ..Default::default() }, "npm");
        let set = v1::SetSecretRequest { name: "npm".into(), value: SECRET.into(), ..Default::default() };
        hidden(set, "npm");
        hidden(v1::DataPreface { data_token: SECRET.into(), ..Default::default() }, "data_token");
    }
}
