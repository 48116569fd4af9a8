//! Processes whose clocks are wrong: what is decided is decided by the database's clock.

use std::path::PathBuf;
use std::time::Duration;

use tenantry::tenant::Upstream;

use crate::support::{eventually, missing};
use crate::three::Suite;

/// The library that shifts the clock of a process that is started with it (Debian's package `faketime`).
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found = folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file());
    if found.is_none() {
        missing("faketime");
    }
    found
}

#[tokio::test]
async fn a_process_whose_clock_is_an_hour_off_trips_the_guard_and_repairs_once_it_is_lifted() {
    let Some(library) = faketime() else { return };
    for offset in ["+1h", "-1h"] {
        let suite = Suite::new().await;
        let process = suite.process(&[
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME", offset),
            // Only what day it is; how long things take stays true.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("SWEEP_INTERVAL", "1s"),
        ]);
        let slugs = suite.fleet(30).await;
        for slug in &slugs {
            suite.world.authentik.delete_named(&format!("tenant-{slug}"));
        }
        eventually(&format!("{offset}: the guard trips"), async || {
            suite.guard(Upstream::Authentik).await.is_tripped()
        })
        .await;
        assert!(suite.world.authentik.count() < 30, "{offset}");
        let hour = Duration::from_secs(3600);
        assert!(suite.world.store.lift_guard(Upstream::Authentik, hour).await.unwrap(), "{offset}");
        eventually(&format!("{offset}: all is repaired"), async || suite.world.authentik.count() == 30)
            .await;
        let log = process.stop().await;
        let told = log.lines().find(|line| line.contains("tenantry is starting")).unwrap();
        let told: serde_json::Value = serde_json::from_str(told).unwrap();
        let at: jiff::Timestamp = told["timestamp"].as_str().unwrap().parse().unwrap();
        let off = jiff::Timestamp::now().duration_since(at).as_secs().abs();
        assert!((3_000..4_200).contains(&off), "{offset}: its clock was shifted: {off}");
    }
}
