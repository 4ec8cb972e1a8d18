//! `strongroom man` and `strongroom completions`: generated from the flags themselves.

use clap::Args;
use clap_complete::Shell;

use super::output::line;
use super::{EXIT_CODES, Exit, Failure, command};

/// Print a script that completes this command in a shell.
#[derive(Debug, Args)]
pub(super) struct CompletionsCommand {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "strongroom", &mut script);
        line(String::from_utf8_lossy(&script).trim_end())
    }
}

/// Prints one roff page: the command, then each subcommand with its flags.
pub(super) fn print() -> Result<(), Failure> {
    let page =
        page().map_err(|error| Failure::new(Exit::Failed, format!("writing the manual page: {error}")))?;
    line(String::from_utf8_lossy(&page).trim_end())
}

fn page() -> std::io::Result<Vec<u8>> {
    let mut root = command();
    root.build();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(root.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for subcommand in root.get_subcommands() {
        section(subcommand, "strongroom", &mut page)?;
    }
    let environment = root.get_arguments().filter_map(|argument| {
        let (variable, flag) = (argument.get_env()?.to_str()?, argument.get_long()?);
        Some((variable.to_owned(), format!("The same as --{flag}.")))
    });
    list("ENVIRONMENT", environment, &mut page);
    let codes = EXIT_CODES.lines().filter_map(|line| line.trim().split_once("  "));
    list("EXIT STATUS", codes.map(|(code, meaning)| (code.to_owned(), meaning.trim().to_owned())), &mut page);
    Ok(page)
}

/// A section of terms and what they mean.
fn list(title: &str, entries: impl Iterator<Item = (String, String)>, page: &mut Vec<u8>) {
    page.extend_from_slice(format!(".SH \"{title}\"\n").as_bytes());
    for (term, meaning) in entries {
        let meaning = meaning.replace('-', "\\-");
        page.extend_from_slice(format!(".TP\n\\fB{term}\\fR\n{meaning}\n").as_bytes());
    }
}

/// One subcommand as a section of the page, and its own subcommands after it.
fn section(subcommand: &clap::Command, parent: &str, page: &mut Vec<u8>) -> std::io::Result<()> {
    if subcommand.is_hide_set() {
        return Ok(());
    }
    let name = format!("{parent} {}", subcommand.get_name());
    page.extend_from_slice(format!(".SH \"{}\"\n", name.to_uppercase()).as_bytes());
    // Flags that every command takes stand in the first section once.
    let own = subcommand.clone().mut_args(|argument| {
        let global = argument.is_global_set() || matches!(argument.get_id().as_str(), "help" | "version");
        argument.hide(global)
    });
    let man = clap_mangen::Man::new(own);
    let mut parts = Vec::new();
    man.render_description_section(&mut parts)?;
    man.render_synopsis_section(&mut parts)?;
    man.render_options_section(&mut parts)?;
    let parts = String::from_utf8_lossy(&parts).replace(".SH ", ".SS ");
    page.extend_from_slice(parts.as_bytes());
    subcommand.get_subcommands().try_for_each(|next| section(next, &name, page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_has_every_command_and_its_flags() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        for expected in [
            "STRONGROOM ESCROW",
            "STRONGROOM IMPORT LDIF",
            "STRONGROOM MEMBER ADD",
            "secret\\-file",
            "STRONGROOM_PROFILE",
            "\\fB75\\fR",
        ] {
            assert!(page.contains(expected), "{expected} is missing");
        }
    }
}
