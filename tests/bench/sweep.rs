//! A large fleet, converged: what a sweep of it costs, and what it finds and mends.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, DateTime, Document, doc};
use serde_json::{Value, json};

use crate::suite::Suite;
use crate::{TOKEN, end, reading, scrape};

/// Ways in which a person may change a tenant's resources.
const DAMAGES: usize = 12;

pub async fn sweep(tenants: usize) -> anyhow::Result<()> {
    let suite = Suite::new(0).await?;
    let (controller, _) = suite.controller(&[("SWEEP_INTERVAL", "1d")]).await?;
    let started = Instant::now();
    suite.insert("t", tenants).await?;
    suite.world.active(tenants as u64, Duration::from_secs(3_600)).await?;
    println!("sweep: {tenants} tenants on all three, made by tenantry in {:.0?}", started.elapsed());
    end(controller).await?;
    converged(&suite, tenants).await?;
    drifted(&suite, tenants).await?;
    suite.world.mongod.stop().await;
    Ok(())
}

/// One sweep of a fleet that is as it should be.
async fn converged(suite: &Suite, tenants: usize) -> anyhow::Result<()> {
    let before = hash(suite).await?;
    let (controller, telemetry) =
        suite.controller(&[("SWEEP_INTERVAL", "30s"), ("POLL_INTERVAL", "10m")]).await?;
    let pid = controller.id().ok_or_else(|| anyhow::anyhow!("the controller has ended"))?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let idle = resident(pid)?;
    let text = scrape(&telemetry).await?;
    let commands = mongodb_commands(&text);
    suite.forget_requests();
    let (mut most, mut swept) = (idle, false);
    let until = Instant::now() + Duration::from_secs(600);
    let mut asked = Instant::now();
    while !swept {
        anyhow::ensure!(Instant::now() < until, "the sweep does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
        most = most.max(resident(pid)?);
        if asked.elapsed() > Duration::from_secs(2) {
            asked = Instant::now();
            let text = scrape(&telemetry).await?;
            swept = ["authentik", "stalwart", "ocis"].iter().all(|upstream| {
                let name = format!("tenantry_sweeps_total{{result=\"ok\",upstream=\"{upstream}\"}} ");
                text.lines().any(|line| line.starts_with(&name))
            });
        }
    }
    let text = scrape(&telemetry).await?;
    let mut whole = 0.0;
    println!("  converged");
    let budget = [tenants.div_ceil(100), tenants.div_ceil(500), 2];
    for ((upstream, faults), budget) in suite.upstreams().into_iter().zip(budget) {
        let took =
            reading(&text, &format!("tenantry_sweep_duration_seconds_sum{{upstream=\"{upstream}\"}}"));
        whole += took;
        println!(
            "    {upstream:<10} {took:6.1} s, {:8.0} tenants/s, {} requests (budget {budget})",
            tenants as f64 / took,
            faults.total()
        );
    }
    println!("    all three  {whole:6.1} s");
    let now = mongodb_commands(&text);
    let used = now.iter().map(|(name, count)| {
        let before = commands.get(name).copied().unwrap_or_default();
        (name, count - before)
    });
    let used: Vec<_> = used.filter(|(_, more)| *more > 0.0).map(|(n, m)| format!("{n} {m}")).collect();
    println!(
        "    MongoDB commands: {} (of them find: {} by the design)",
        used.join(", "),
        tenants.div_ceil(1000)
    );
    println!(
        "    resident memory: {:.1} MiB idle, {:.1} MiB at most, {:.1} more",
        mib(idle),
        mib(most),
        mib(most - idle)
    );
    end(controller).await?;
    anyhow::ensure!(hash(suite).await? == before, "a tenant's document was changed");
    println!("    no document of a tenant was changed (equal hashes of the collection)");
    Ok(())
}

/// One in a hundred tenants differs.
async fn drifted(suite: &Suite, tenants: usize) -> anyhow::Result<()> {
    let before = State::of(suite);
    let mut chosen = Vec::new();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    while chosen.len() < tenants / 100 {
        // xorshift: the same damage in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let n = usize::try_from(random % tenants as u64)?;
        if !chosen.contains(&n) {
            chosen.push(n);
        }
    }
    let mut kinds = [0; DAMAGES];
    for (at, n) in chosen.iter().enumerate() {
        let kind = (at * 7 + n) % DAMAGES;
        damage(suite, &before, *n, kind).await?;
        kinds[kind] += 1;
    }
    let damaged_at = DateTime::now();
    println!("  drifted: {} tenants, by kind {kinds:?}", chosen.len());
    let (controller, telemetry) = suite.controller(&[("SWEEP_INTERVAL", "10s")]).await?;
    suite.forget_requests();
    let until = Instant::now() + Duration::from_secs(900);
    let mut listing = None;
    loop {
        anyhow::ensure!(Instant::now() < until, "not all is repaired");
        tokio::time::sleep(Duration::from_millis(100)).await;
        if listing.is_none() && suite.world.authentik.faults.total() > 2 {
            listing = Some(Instant::now());
        }
        let Some(listing) = listing else { continue };
        let touched = suite.world.tenants.count_documents(attempted_since(damaged_at)).await?;
        if touched < chosen.len() as u64 {
            continue;
        }
        let seen = listing.elapsed();
        if let Err(wrong) = State::of(suite).audit(&before, &chosen) {
            anyhow::ensure!(seen < Duration::from_secs(600), "{wrong}");
            continue;
        }
        println!("    {seen:.1?} from the first request of a sweep until the last was repaired");
        break;
    }
    let text = scrape(&telemetry).await?;
    for (upstream, faults) in suite.upstreams() {
        println!("    {upstream:<10} {} requests, lists included", faults.total());
    }
    let found: f64 = text
        .lines()
        .filter(|line| line.starts_with("tenantry_drift_found_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    println!("    {found} tenants flagged; nothing else was touched (every other resource is equal)");
    end(controller).await
}

fn attempted_since(at: DateTime) -> Document {
    let any: Vec<Bson> = ["authentik", "stalwart", "ocis"]
        .map(|step| doc! { format!("steps.{step}.lastAttemptAt"): { "$gt": at } }.into())
        .into();
    doc! { "$or": any }
}

/// Changes something of tenant `n`, as a person with access to the upstream might.
async fn damage(suite: &Suite, state: &State, n: usize, kind: usize) -> anyhow::Result<()> {
    let group = format!("tenant-t{n}");
    let domain = format!("t{n}.test");
    let space = &state.spaces[&format!("Tenant t{n}")];
    let space_id = space["id"].as_str().unwrap_or_default();
    let (mail, files) = (&suite.mail, &suite.files);
    let done = match kind {
        0 => suite.world.authentik.delete_named(&group) == 1,
        1..=3 => {
            let change = match kind {
                1 => json!({ "name": format!("renamed-{n}") }),
                2 => json!({ "attributes": {} }),
                _ => {
                    let mut attributes = state.groups[&group]["attributes"].clone();
                    attributes["tenantry_slug"] = json!("other");
                    json!({ "attributes": attributes })
                }
            };
            let pk = state.groups[&group]["pk"].as_str().unwrap_or_default();
            let url = format!("{}/api/v3/core/groups/{pk}/", suite.world.authentik.url());
            let patch = reqwest::Client::new().patch(url).bearer_auth(TOKEN);
            let patch = patch.header("content-type", "application/json").body(change.to_string());
            patch.send().await?.status().is_success()
        }
        4 => mail.delete(&domain),
        5 => mail.change(&domain, json!({ "description": null })),
        6 => mail.change(&domain, json!({ "isEnabled": false })),
        7 => files.disable(space_id),
        8 => files.disable(space_id) && files.purge(space_id),
        9 => files.change(space_id, json!({ "quota": { "total": 5 } })),
        10 => files.change(space_id, json!({ "description": "", "driveAlias": "project/x" })),
        _ => files.change(space_id, json!({ "name": format!("Renamed {n}") })),
    };
    anyhow::ensure!(done, "tenant {n} could not be damaged in way {kind}");
    Ok(())
}

/// Every resource, by name.
struct State {
    groups: HashMap<String, Value>,
    domains: HashMap<String, Value>,
    spaces: HashMap<String, Value>,
    /// Names that more than one has.
    doubled: usize,
}

impl State {
    fn of(suite: &Suite) -> Self {
        let mut doubled = 0;
        let mut by_name = |resources: Vec<Value>| {
            let mut named = HashMap::with_capacity(resources.len());
            for resource in resources {
                let name = resource["name"].as_str().unwrap_or_default().to_owned();
                doubled += usize::from(named.insert(name, resource).is_some());
            }
            named
        };
        let enabled = suite.files.drives().into_iter().filter(|d| d.pointer("/root/deleted").is_none());
        Self {
            groups: by_name(suite.world.authentik.groups()),
            domains: by_name(suite.mail.domains()),
            spaces: by_name(enabled.collect()),
            doubled,
        }
    }

    /// Whether all is as before, and what belongs to undamaged tenants the very same.
    fn audit(&self, before: &Self, damaged: &[usize]) -> Result<(), String> {
        if self.doubled > 0 {
            return Err(format!("{} resources are there twice", self.doubled));
        }
        let damaged: std::collections::HashSet<String> =
            damaged.iter().map(|n| format!("t{n}")).collect();
        let pairs = [
            (&self.groups, &before.groups, "tenant-", "", &["name", "attributes"][..]),
            (&self.domains, &before.domains, "", ".test", &["name", "description", "isEnabled"][..]),
            (&self.spaces, &before.spaces, "Tenant ", "", &["name", "quota"][..]),
        ];
        for (now, before, prefix, suffix, fields) in pairs {
            if now.len() != before.len() {
                return Err(format!("there are {} instead of {}", now.len(), before.len()));
            }
            for (name, was) in before {
                let Some(is) = now.get(name) else { return Err(format!("{name} is missing")) };
                let slug = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(suffix));
                let same = if slug.is_some_and(|slug| damaged.contains(slug)) {
                    fields.iter().all(|field| is[field] == was[field])
                } else {
                    is == was
                };
                if !same {
                    return Err(format!("{is} is not {was}"));
                }
            }
        }
        Ok(())
    }
}

/// The server's hash of all tenants' documents.
async fn hash(suite: &Suite) -> anyhow::Result<Bson> {
    let reply =
        suite.world.database.run_command(doc! { "dbHash": 1, "collections": ["tenants"] }).await?;
    let hash = reply.get_document("collections")?.get("tenants").cloned();
    hash.ok_or_else(|| anyhow::anyhow!("the server does not hash"))
}

fn mongodb_commands(metrics: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("tenantry_mongodb_commands_total{command=\"")?;
        let (name, count) = rest.split_once("\"} ")?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    lines.collect()
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| anyhow::anyhow!("no memory is told of the controller"))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
