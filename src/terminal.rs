//! What the process says on standard output and standard error.
//!
//! # Guarantees
//!
//! No write panics, and nothing depends on one: a full disk or a reader that went away must not keep a
//! process from ending in order. An output that is the result of a command is whole, or the caller learns
//! that it is not.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// What became of a text on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Printed {
    Whole,
    /// The reader has seen enough and went away, as `head` does.
    Unread,
}

/// Prints to standard output, at once.
///
/// # Errors
/// When the text could not be written whole, such as on a full disk.
pub fn print(text: &str) -> io::Result<Printed> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Printed::Whole),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Printed::Unread),
        Err(error) => Err(error),
    }
}

/// Says a line on standard error, if that can be written.
pub fn say(line: Arguments<'_>) {
    // There is no place left to tell that this failed.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
