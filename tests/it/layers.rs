//! Imports point one way, as docs/architecture.md says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A row of the table of rooms.
struct Room {
    name: String,
    may_import: Vec<String>,
    is_leaf: bool,
}

/// The rooms, as the page about the architecture has them.
fn rooms() -> Vec<Room> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = fs::read_to_string(page).unwrap();
    let table = page.split("## The rooms").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut rooms = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [names, what, imports] = cells[..] else { panic!("{row}") };
        let may_import = imports.split(", ").filter(|name| *name != "nothing");
        let may_import: Vec<String> = may_import.map(ToOwned::to_owned).collect();
        for name in names.split('`').skip(1).step_by(2) {
            let is_leaf = what.ends_with("(leaf)");
            rooms.push(Room { name: name.to_owned(), may_import: may_import.clone(), is_leaf });
        }
    }
    rooms
}

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
    let rooms = rooms();
    let known: BTreeSet<_> = rooms.iter().map(|room| room.name.clone()).collect();
    let there = fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().path());
    let there = there.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let there: BTreeSet<_> = there.filter(|name| !["main", "lib"].contains(&name.as_str())).collect();
    assert_eq!(known, there, "the table of rooms and the folders of src");
    let leaves: Vec<_> = rooms.iter().filter(|room| room.is_leaf).map(|room| &*room.name).collect();
    for Room { name: room, may_import: below, .. } in &rooms {
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
                if imported == room {
                    continue;
                }
                let leaf = leaves.contains(&imported) && room != "tenant";
                assert!(
                    below.iter().any(|below| below == imported) || leaf,
                    "{file} imports {imported}"
                );
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
