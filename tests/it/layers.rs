//! Imports point one way, as docs/architecture.md says.

use std::fs;
use std::path::Path;

/// Each room with the rooms it may import; leaves may be imported by all.
const ROOMS: &[(&str, &[&str])] = &[
    ("tenant", &[]),
    ("store", &["tenant"]),
    ("integration", &["tenant"]),
    ("controller", &["store", "integration", "tenant"]),
    ("auth", &["integration", "tenant"]),
    ("api", &["auth", "store", "tenant"]),
    ("cli", &["integration", "tenant"]),
    ("dev", &["api", "auth", "controller", "store", "integration", "tenant", "config", "run"]),
    ("run", &["api", "auth", "controller", "store", "integration", "tenant", "config"]),
    ("config", &["auth", "integration", "store", "tenant"]),
    ("metrics", &["tenant"]),
    ("telemetry", &[]),
    ("terminal", &[]),
    ("environment", &[]),
    ("signals", &[]),
    ("secret", &[]),
    ("failpoint", &[]),
];
const LEAVES: [&str; 5] = ["metrics", "telemetry", "terminal", "secret", "failpoint"];

fn sources(path: &Path, into: &mut Vec<(String, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), into);
        }
    } else {
        into.push((path.display().to_string(), fs::read_to_string(path).unwrap()));
    }
}

#[test]
fn imports_point_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for (room, below) in ROOMS {
        let mut files = Vec::new();
        for path in [src.join(room), src.join(format!("{room}.rs"))] {
            if path.exists() {
                sources(&path, &mut files);
            }
        }
        assert!(!files.is_empty(), "there is no room {room}");
        for (file, text) in files {
            for import in text.split("crate::").skip(1) {
                let end = import.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(0);
                let imported = &import[..end];
                assert!(!imported.is_empty(), "{file} groups imports, which hides them from this test");
                if imported == *room {
                    continue;
                }
                let leaf = LEAVES.contains(&imported) && *room != "tenant";
                assert!(below.contains(&imported) || leaf, "{file} imports {imported}");
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "only {seen} imports were found: the test no longer reads the sources");
}

#[test]
fn only_the_store_and_the_simulated_world_name_the_database_driver() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for (file, text) in files {
        let allowed = file.contains("/store/") || file.contains("/dev/");
        assert!(allowed || !text.contains("mongodb::"), "{file} names the driver");
    }
}

/// Its functions are pure, so that a property test can drive them.
#[test]
fn the_domain_has_no_clock_no_tasks_and_no_io() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tenant");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 10);
    for (file, text) in files {
        for word in [
            "Timestamp::now",
            "Instant::now",
            "SystemTime::now",
            "async fn",
            "tokio::",
            "std::fs",
            "std::env",
        ] {
            assert!(!text.contains(word), "{file} uses {word}");
        }
    }
}
