//! Environment variables, as the command line reads them.
//!
//! Variables come from files and templates, which leave a line end, a carriage return or nothing at all. As
//! in files with secrets, blanks around a value do not count, and an empty variable is the same as none.
//! This holds for every variable of every command, because it is done to the description of the command
//! line and not where a value is used. A value that is given as a flag is taken to the letter.

use std::env;

use clap::builder::Resettable;
use clap::{Arg, Command};

/// `command`, and those below it, with variables that are empty forgotten and the others trimmed.
pub fn tidied(command: Command) -> Command {
    command.mut_args(tidied_arg).mut_subcommands(tidied)
}

fn tidied_arg(arg: Arg) -> Arg {
    // One that is no Unicode is refused by clap, which names it.
    let value = arg.get_env().and_then(|name| env::var(name).ok());
    match value.as_deref().map(str::trim) {
        Some(trimmed) if value.as_deref() != Some(trimmed) || trimmed.is_empty() => {
            let arg = arg.env(Resettable::Reset);
            if trimmed.is_empty() {
                return arg;
            }
            // It may be a secret, and `--help` shows default values.
            arg.default_value(trimmed.to_owned()).hide_default_value(true)
        }
        _ => arg,
    }
}
