//! Secrets, and other settings that may come from a file: what they are now.
//!
//! A secret that was given directly never changes. One in a file is read again every few seconds, and at
//! once when it was refused, because mounted secrets are replaced while the process runs. What the file
//! says is compared, not when it was changed: a mount replaces a symbolic link above the file, which
//! leaves no trace in the file's own times, and a notification for the old file would never come.
//!
//! # Guarantees
//!
//! * A file that is empty, unreadable or half written never replaces a value: the old one is kept, with
//!   one warning, until the file can be read again.
//! * Earlier values are still kept out of messages: an upstream may quote them late.
//! * No value is ever in debug output.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;

/// Between looks at the files.
const POLL: Duration = Duration::from_secs(2);
/// A new value is believed when the file says the same twice, this far apart.
const SETTLES: Duration = Duration::from_millis(50);
/// Earlier values that are kept out of messages.
const EARLIER: usize = 4;
const REDACTED: &str = "[redacted]";

/// See the module. Clones share the value.
#[derive(Clone)]
pub struct Secret(Arc<Inner>);

struct Inner {
    /// `None` for a value that was given directly.
    file: Option<File>,
    values: Mutex<Values>,
    /// How often the value changed.
    version: watch::Sender<u64>,
}

struct File {
    /// The setting that names it, for messages.
    setting: String,
    path: PathBuf,
}

struct Values {
    current: SecretString,
    earlier: VecDeque<SecretString>,
    /// Whether it was told that the file cannot be read.
    told: bool,
}

impl Secret {
    fn new(value: SecretString, file: Option<File>) -> Self {
        let values = Values { current: value, earlier: VecDeque::new(), told: false };
        Self(Arc::new(Inner { file, values: Mutex::new(values), version: watch::Sender::new(0) }))
    }

    /// Reads a file; blanks and line ends around the value do not count.
    ///
    /// # Errors
    /// In words: why it cannot be read, or that it is empty.
    pub fn from_file(setting: &str, path: &Path) -> Result<Self, String> {
        let value = understood(path, std::fs::read_to_string(path))?;
        Ok(Self::new(value, Some(File { setting: setting.to_owned(), path: path.to_owned() })))
    }

    /// The value as it is now.
    pub fn current(&self) -> SecretString {
        self.lock().current.clone()
    }

    /// Whether it may change.
    pub fn is_from_file(&self) -> bool {
        self.0.file.is_some()
    }

    /// How often the value changed; tells the one that was used from the one that is there now.
    pub fn version(&self) -> u64 {
        *self.0.version.borrow()
    }

    /// `text` without the value and those before it.
    pub fn redact(&self, text: &str) -> String {
        let values = self.lock();
        let all = values.earlier.iter().chain([&values.current]);
        let mut all: Vec<_> = all.map(ExposeSecret::expose_secret).filter(|it| !it.is_empty()).collect();
        // One may be part of another.
        all.sort_by_key(|value| std::cmp::Reverse(value.len()));
        all.into_iter().fold(text.to_owned(), |text, value| text.replace(value, REDACTED))
    }

    /// Reads the file again, if there is one; returns whether it held another value.
    pub async fn reread(&self) -> bool {
        let Some(file) = &self.0.file else { return false };
        match self.settled(file).await {
            Ok(None) => {
                self.lock().told = false;
                false
            }
            Ok(Some(value)) => self.learn(file, value),
            Err(why) => {
                if !std::mem::replace(&mut self.lock().told, true) {
                    tracing::warn!(setting = file.setting, "the value before is kept: {why}");
                }
                false
            }
        }
    }

    /// Another value, once the file says it twice.
    async fn settled(&self, file: &File) -> Result<Option<SecretString>, String> {
        let mut seen = read(&file.path).await?;
        loop {
            if seen.expose_secret() == self.lock().current.expose_secret() {
                return Ok(None);
            }
            tokio::time::sleep(SETTLES).await;
            let again = read(&file.path).await?;
            if again.expose_secret() == seen.expose_secret() {
                return Ok(Some(again));
            }
            seen = again;
        }
    }

    fn learn(&self, file: &File, value: SecretString) -> bool {
        {
            let mut values = self.lock();
            values.told = false;
            if values.current.expose_secret() == value.expose_secret() {
                // Another task was quicker.
                return false;
            }
            let before = std::mem::replace(&mut values.current, value);
            values.earlier.push_back(before);
            if values.earlier.len() > EARLIER {
                values.earlier.pop_front();
            }
        }
        self.0.version.send_modify(|version| *version += 1);
        tracing::info!(
            setting = file.setting, path = %file.path.display(),
            "the file holds another value, which is used from now on"
        );
        true
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.0.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(path: &Path) -> Result<SecretString, String> {
    understood(path, tokio::fs::read_to_string(path).await)
}

fn understood(path: &Path, text: std::io::Result<String>) -> Result<SecretString, String> {
    match text {
        Ok(text) if text.trim().is_empty() => Err(format!("{} is empty", path.display())),
        Ok(text) => Ok(SecretString::from(text.trim())),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// A value that was given directly.
impl From<SecretString> for Secret {
    fn from(value: SecretString) -> Self {
        Self::new(value, None)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        SecretString::from(value).into()
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        SecretString::from(value).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.0.file.as_ref().map_or("given", |file| file.setting.as_str());
        f.debug_tuple("Secret").field(&from).finish()
    }
}

/// Tells when one of several secrets changes.
pub struct Changes(Vec<watch::Receiver<u64>>);

impl Changes {
    /// From now on.
    pub fn of(secrets: &[Secret]) -> Self {
        let from_files = secrets.iter().filter(|secret| secret.is_from_file());
        Self(from_files.map(|secret| secret.0.version.subscribe()).collect())
    }

    /// Waits for the next change; for ever where nothing can change.
    pub async fn next(&mut self) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        // The secret itself may be gone, and then changes no more.
        let changed = self.0.iter_mut().map(|version| {
            Box::pin(async {
                if version.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        });
        select_all(changed).await;
    }
}

/// Reads the files of these secrets again and again.
pub async fn keep_read(secrets: Vec<Secret>) {
    loop {
        tokio::time::sleep(POLL).await;
        // Side by side: a file system that hangs must not keep the others' files from being read.
        join_all(secrets.iter().map(Secret::reread)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn value(secret: &Secret) -> String {
        secret.current().expose_secret().to_owned()
    }

    #[tokio::test]
    async fn a_file_that_was_swapped_by_its_link_has_its_new_value_and_neither_one_reaches_a_message() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, key) in [("1", "old-key\n"), ("2", "new-key\n")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("key"), key).unwrap();
        }
        std::os::unix::fs::symlink(at("1"), at("data")).unwrap();
        let secret = Secret::from_file("KEY_FILE", &at("data").join("key")).unwrap();
        let mut changes = Changes::of(std::slice::from_ref(&secret));
        assert_eq!((value(&secret).as_str(), secret.reread().await), ("old-key", false));
        // As a mount does it.
        std::os::unix::fs::symlink(at("2"), at("data.new")).unwrap();
        std::fs::rename(at("data.new"), at("data")).unwrap();
        assert!(secret.reread().await);
        assert_eq!((value(&secret).as_str(), secret.version()), ("new-key", 1));
        tokio::time::timeout(Duration::from_secs(1), changes.next()).await.expect("it is told");
        let told = secret.redact("old-key was replaced by new-key");
        assert_eq!(told, "[redacted] was replaced by [redacted]");
        assert!(!format!("{secret:?}").contains("-key"));
    }

    #[tokio::test]
    async fn a_file_that_is_empty_or_gone_takes_no_value_away() {
        let (_folder, path) = file("key");
        let secret = Secret::from_file("KEY_FILE", &path).unwrap();
        std::fs::write(&path, "\n").unwrap();
        assert!(!secret.reread().await);
        std::fs::remove_file(&path).unwrap();
        assert!(!secret.reread().await);
        assert_eq!(value(&secret), "key");
        std::fs::write(&path, "other").unwrap();
        assert!(secret.reread().await);
        assert_eq!(value(&secret), "other");
    }

    #[tokio::test]
    async fn a_file_that_is_still_being_written_is_waited_for() {
        let (_folder, path) = file("first");
        let secret = Secret::from_file("KEY_FILE", &path).unwrap();
        std::fs::write(&path, "sec").unwrap();
        let reading = tokio::spawn({
            let secret = secret.clone();
            async move { secret.reread().await }
        });
        tokio::time::sleep(SETTLES / 2).await;
        std::fs::write(&path, "second").unwrap();
        assert!(reading.await.unwrap());
        assert_eq!((value(&secret).as_str(), secret.version()), ("second", 1));
    }

    #[test]
    fn a_file_is_read_at_once_or_it_is_said_why_not() {
        let missing = Secret::from_file("KEY_FILE", Path::new("/nowhere/key")).unwrap_err();
        assert!(missing.starts_with("cannot read /nowhere/key: "), "{missing}");
        let (_folder, path) = file(" \n");
        assert!(Secret::from_file("KEY_FILE", &path).unwrap_err().ends_with("secret is empty"));
    }
}
