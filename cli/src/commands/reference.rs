//! `berth env`: the variables that Berth knows, and with `--reference` all settings of all commands that serve, as the page
//! docs/settings.md has them. Both are made from what parses the settings, so neither can say what is not so.

use std::{collections::BTreeSet, fmt::Write};

use clap::{Args, Command, CommandFactory};

use super::{Cli, Global, listing};
use crate::{
    env,
    failure::CommandResult,
    output,
    serve::{coordinator::CoordinatorArgs, worker::WorkerArgs},
};

const HELP: &str = "\
Examples:
  berth env
  berth env --reference > docs/settings.md";

/// Lists the environment variables that Berth knows.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct EnvArgs {
    /// Print all settings of all commands that serve, as a page of Markdown
    #[arg(long)]
    pub reference: bool,
}

pub fn run(global: &Global, args: &EnvArgs) -> CommandResult {
    if !args.reference {
        return listing::env(global);
    }
    if global.json() {
        output::json(&serde_json::json!({ "page": page() }))?;
    } else {
        output::data(page().trim_end())?;
    }
    Ok(0)
}

/// The page.
fn page() -> String {
    let mut page = String::from(
        "# Settings\n\nAll of them, as the programs themselves have them: made by `make settings` (`berth env --reference`), and \
         compared with it by a test.\nWhat they mean together is in [configuration.md](configuration.md). \
         `--print-config` of `coordinator` and `worker` shows what is in force, and from where.\n",
    );
    let mut told = BTreeSet::new();
    let berth = Cli::command();
    let below = |name: &str| berth.find_subcommand(name).cloned().unwrap_or_default();
    for (name, command) in [
        ("coordinator", CoordinatorArgs::command()),
        ("worker", WorkerArgs::command()),
        ("berth up", below("up")),
        ("berth mcp", below("mcp")),
        ("berth (every command)", berth.clone()),
    ] {
        table(&mut page, name, &command, &mut told);
    }
    page.push_str("\n## Others\n\n| variable | read by | what (default) |\n|---|---|---|\n");
    for known in env::KNOWN.iter().filter(|known| !told.contains(known.name)) {
        let _ = writeln!(page, "| `{}` | {} | {} |", known.name, known.used_by, cell(known.what));
    }
    page
}

fn table(page: &mut String, name: &str, command: &Command, told: &mut BTreeSet<String>) {
    let _ = writeln!(page, "\n## `{name}`\n\n| variable | flag | what |\n|---|---|---|");
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        if matches!(arg.get_id().as_str(), "help" | "version") {
            continue;
        }
        let Some(flag) = arg.get_long() else { continue };
        let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
        told.extend(variable.clone());
        let takes = arg.get_action().takes_values();
        let value = arg.get_value_names().filter(|_| takes).map(|names| names.join(" "));
        let value = value.map(|value| format!(" {value}")).unwrap_or_default();
        let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
        let mut what = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if takes && !default.is_empty() && !what.contains("[default") {
            let _ = write!(what, " [default: {}]", default.join(" "));
        }
        let variable = variable.map(|name| format!("`{name}`")).unwrap_or_default();
        let _ = writeln!(page, "| {variable} | {short}`--{flag}{}` | {} |", cell(&value), cell(&what));
    }
}

/// What a table's cell can hold.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_page_is_what_the_programs_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
        let written = fs::read_to_string(path).unwrap_or_default();
        assert!(written == super::page(), "docs/settings.md is not what the programs say: `make settings`");
        for setting in ["`BERTH_LEASE`", "`--workspace", "`BERTH_HOST_PORT`", "`--otlp-endpoint URL`"] {
            assert!(written.contains(setting), "{setting}");
        }
    }
}
