//! Files that only their owner may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::failure::Failure;

/// Replaces a file, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let replace = || {
        folder_of(path)?;
        let new = path.with_extension(format!("{:016x}", rand::random::<u64>()));
        let mut file = OpenOptions::new().mode(0o600).write(true).create_new(true).open(&new)?;
        let replaced = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, path));
        replaced.inspect_err(|_| drop(fs::remove_file(&new)))
    };
    replace().map_err(|error| broken(path, &error))
}

/// What a file holds; `None` if there is none.
///
/// # Errors
/// When others could read it as well, or it cannot be read.
pub fn read(path: &Path) -> Result<Option<String>, Failure> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| broken(path, &error))?,
    };
    let mode = fs::metadata(path).map_err(|error| broken(path, &error))?.mode();
    if mode & 0o077 != 0 {
        let file = path.display();
        let said = format!(
            "{file} holds a token and may be read by others (mode {:o}): chmod 600 {file}",
            mode & 0o777
        );
        return Err(Failure::usage(said));
    }
    Ok(Some(text))
}

/// Waits until this process alone does what the file stands for. It is given back when the file is closed.
///
/// # Errors
/// When the file cannot be made.
pub fn lock(path: &Path) -> Result<File, Failure> {
    let take = || {
        folder_of(path)?;
        let file = OpenOptions::new().mode(0o600).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        Ok(file)
    };
    take().map_err(|error: io::Error| broken(path, &error))
}

fn folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| DirBuilder::new().recursive(true).mode(0o700).create(folder))
}

fn broken(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}
