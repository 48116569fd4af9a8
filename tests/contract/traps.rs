//! The table of traps names tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn tests(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, into);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
            into.extend(names.map(ToOwned::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_table_of_traps_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    tests(&root.join("tests"), &mut known);
    tests(&root.join("src"), &mut known);
    let table = fs::read_to_string(root.join("tests/contract/README.md")).unwrap();
    let quoted = table.split('`').skip(1).step_by(2);
    let named: Vec<_> = quoted
        .filter(|text| {
            text.len() > 25
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
        .collect();
    assert!(named.len() > 70, "only {} names were found", named.len());
    for name in named {
        assert!(known.contains(name), "there is no test {name}");
    }
}
