//! The tools. Each file is a group, and each tool in it: its arguments, its answer, and what it does.

mod artifacts;
mod edit;
mod files;
mod find;
mod packages;
mod ports;
mod read_write;
mod run;
mod sessions;
pub mod tasks;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tool::{Answer, Effect, Entry, Table};

/// What every tool says of its argument `session`.
pub(crate) type SessionArgument = Option<String>;

pub fn table() -> Table {
    let groups = [
        vec![echo()],
        read_write::tools(),
        files::tools(),
        edit::tools(),
        find::tools(),
        run::tools(),
        tasks::tools(),
        packages::tools(),
        artifacts::tools(),
        ports::tools(),
        sessions::tools(),
    ];
    Table::new(groups.into_iter().flatten())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EchoArgs {
    /// Text to get back.
    message: String,
}

#[derive(Serialize, JsonSchema)]
struct Echo {
    message: String,
}

fn echo() -> Entry {
    Entry::new(
        "echo",
        "Echo",
        Effect::Reads,
        "Answers with the message that it is given. Needs no session: it shows that this server answers.",
        async |_call, EchoArgs { message }| Ok(Answer { text: message.clone(), data: Echo { message } }),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What clients rely on, of each tool. Red for a tool without a hint, or one that takes arguments it does not know.
    #[test]
    fn each_tool_says_what_it_takes_answers_and_does() {
        let tools = table().tools();
        assert!(tools.len() >= 20, "{}", tools.len());
        let names: BTreeSet<&str> = tools.iter().map(|tool| &*tool.name).collect();
        assert_eq!(names.len(), tools.len());
        for tool in &tools {
            let name = &*tool.name;
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(tool.input_schema["type"], "object", "{name}");
            assert_eq!(tool.input_schema["additionalProperties"], false, "{name}");
            assert!(tool.description.as_ref().is_some_and(|text| text.len() > 40), "{name}");
            let output = tool.output_schema.as_ref().expect(name);
            assert_eq!(output["type"], "object", "{name}");
            let hints = tool.annotations.as_ref().expect(name);
            assert!(hints.read_only_hint.is_some() && hints.destructive_hint.is_some(), "{name}");
            if name != "echo" && name != "session_create" {
                assert!(tool.input_schema["properties"]["session"].is_object(), "{name}");
            }
            for (field, schema) in tool.input_schema["properties"].as_object().unwrap() {
                assert!(schema["description"].is_string(), "{name}: {field} is not described");
                assert!(!schema["type"].is_array(), "{name}: {field} has several types");
            }
        }
        for name in [
            "fs_read",
            "fs_list",
            "fs_stat",
            "fs_search",
            "task_get_status",
            "task_get_result",
            "artifact_list",
            "artifact_get",
        ] {
            let tool = tools.iter().find(|tool| tool.name == name).expect(name);
            assert_eq!(tool.annotations.as_ref().unwrap().read_only_hint, Some(true), "{name}");
        }
    }

    /// Red when what an answer leaves out is required of it: clients that check answers refuse them then.
    #[test]
    fn an_answer_need_not_have_what_it_leaves_out_when_empty() {
        let table = table();
        let required = |tool: &str, of: &str| -> BTreeSet<String> {
            let schema =
                serde_json::to_value(&table.find(tool).expect(tool).tool.output_schema).expect("JSON");
            let names = schema.pointer(&format!("{of}/required")).and_then(serde_json::Value::as_array);
            names.expect(tool).iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let ran = required("run_shell", "");
        assert!(ran.contains("stdout") && ran.contains("outcome"), "{ran:?}");
        assert!(!ran.contains("message") && !ran.contains("exit_code"), "{ran:?}");
        let found = required("fs_search", "/properties/matches/items");
        assert!(found.contains("path") && !found.contains("before") && !found.contains("after"), "{found:?}");
    }

    #[test]
    fn a_name_may_have_dots() {
        let table = table();
        assert_eq!(table.find("fs.read").unwrap().tool.name, "fs_read");
        assert_eq!(table.find("task.get.result").unwrap().tool.name, "task_get_result");
        assert!(table.find("fs/read").is_none());
    }
}
