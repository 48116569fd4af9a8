//! What the README and the pages below `docs/` name is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Process;

/// Variables that are no flags' too: where they are read, they are written as text.
const READ_ELSEWHERE: &[&str] = &[
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "TENANTRY_CACHE_DIR",
    "TENANTRY_CONFIG",
    "TENANTRY_REQUIRE_TOOLS",
];

/// Variables of the upstreams, not of tenantry.
const OF_UPSTREAMS: &[&str] = &[
    "AUTHENTIK_BOOTSTRAP_TOKEN",
    // Compose's own.
    "COMPOSE_PROFILES",
    "GRAPH_SPACES_DEFAULT_QUOTA",
    "OCIS_CONFIG_DIR",
    "OCIS_EXCLUDE_RUN_SERVICES",
    "OCIS_URL",
    "OC_CONFIG_DIR",
    "PROXY_AUTOPROVISION_ACCOUNTS",
    "PROXY_OIDC_ACCESS_TOKEN_VERIFY_METHOD",
    "PROXY_OIDC_REWRITE_WELLKNOWN",
    "PROXY_ROLE_ASSIGNMENT_DRIVER",
    "PROXY_ROLE_ASSIGNMENT_OIDC_CLAIM",
    "PROXY_USER_CS3_CLAIM",
    "PROXY_USER_OIDC_CLAIM",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// All files below `path` with this extension, each with its text.
fn files(path: &Path, extension: &str, into: &mut BTreeMap<PathBuf, String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), extension, into);
        }
    } else if path.extension().is_some_and(|it| it == extension) {
        into.insert(path.to_owned(), fs::read_to_string(path).unwrap());
    }
}

fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    for path in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs"] {
        files(&root().join(path), "md", &mut pages);
    }
    assert!(pages.len() > 3, "the pages are not found: {:?}", pages.keys());
    pages
}

/// A page's text outside of blocks of code, and its code: each block, and each piece in code font.
fn parts(page: &str) -> (String, Vec<String>) {
    let (mut prose, mut code, mut block) = (String::new(), Vec::new(), None::<String>);
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            match block.take() {
                Some(block) => code.push(block),
                None => block = Some(String::new()),
            }
            continue;
        }
        let text = block.as_mut().unwrap_or(&mut prose);
        text.push_str(line);
        text.push('\n');
    }
    code.extend(prose.split('`').skip(1).step_by(2).map(ToOwned::to_owned));
    (prose, code)
}

/// What `--help` tells of a command.
#[derive(Default)]
struct Help {
    variables: BTreeSet<String>,
    flags: BTreeSet<String>,
    below: BTreeMap<String, Help>,
}

impl Help {
    async fn of(path: Vec<String>) -> Self {
        let output = Process::command().args(&path).arg("--help").output().await.expect("it starts");
        assert!(output.status.success(), "{path:?}");
        let text = String::from_utf8(output.stdout).expect("it is text");
        let mut help = Self::default();
        help.variables.extend(text.split("[env: ").skip(1).filter_map(|rest| {
            let end = rest.find(['=', ']'])?;
            Some(rest[..end].to_owned())
        }));
        for line in text.lines().map(str::trim).filter(|line| line.starts_with('-')) {
            let words = line.split([' ', ',', '=', '[']);
            help.flags.extend(words.filter(|word| word.starts_with("--")).map(ToOwned::to_owned));
        }
        let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
        for line in listed.take_while(|line| !line.is_empty()) {
            // The others go on with what is said of a command.
            let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else {
                continue;
            };
            let name = name.split(' ').next().unwrap_or_default();
            if name != "help" {
                let path = [&path[..], &[name.to_owned()]].concat();
                help.below.insert(name.to_owned(), Box::pin(Self::of(path)).await);
            }
        }
        help
    }

    fn all_variables(&self, into: &mut BTreeSet<String>) {
        into.extend(self.variables.iter().cloned());
        self.below.values().for_each(|help| help.all_variables(into));
    }

    /// What is wrong with the words that follow `tenantry`.
    fn wrong(&self, words: &str) -> Option<String> {
        let (mut at, mut descends) = (self, true);
        for word in words.split_whitespace() {
            let flag = word.split('=').next().unwrap_or_default();
            if flag.starts_with("--") && flag.len() > 2 {
                if !at.flags.contains(flag) {
                    return Some(format!("tenantry {words}: there is no {flag}"));
                }
            } else if descends && !at.below.is_empty() {
                let is_name = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                if !is_name || word.starts_with('-') {
                    descends = false;
                    continue;
                }
                match at.below.get(word) {
                    Some(below) => at = below,
                    None => return Some(format!("tenantry {words}: there is no command {word}")),
                }
            }
        }
        None
    }
}

/// Names that look like those of variables, as far as they are written out; what begins with `_` ends one.
fn variables(code: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = code[from..].find(is_part).map(|at| from + at) {
        let rest = &code[start..];
        let name = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        from = start + name.len();
        let before = code[..start].chars().next_back();
        let is_within = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        // What ends with `_` is the beginning of several.
        if !name.contains('_')
            || name.ends_with('_')
            || is_within(before)
            || is_within(code[from..].chars().next())
        {
            continue;
        }
        match code[..start].strip_suffix('}').and_then(|braces| braces.rsplit_once('{')) {
            Some((_, firsts)) if before == Some('}') && name.starts_with('_') => {
                found.extend(firsts.split(',').map(|first| format!("{first}{name}")));
            }
            _ => found.push(name.to_owned()),
        }
    }
    found
}

/// What follows `tenantry` where that is a command, up to the end of the command.
fn commands(code: &str) -> Vec<&str> {
    let found = code.match_indices("tenantry ").filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "/(<".contains(c))
    });
    let words = found.map(|(at, name)| {
        let rest = &code[at + name.len()..];
        let ends = ["\n", "|", "&", ";", ")", " #"].iter().filter_map(|end| rest.find(end));
        &rest[..ends.min().unwrap_or(rest.len())]
    });
    words.collect()
}

#[tokio::test]
async fn every_variable_that_the_pages_name_is_a_setting_or_an_upstreams() {
    let mut known = BTreeSet::new();
    Help::of(Vec::new()).await.all_variables(&mut known);
    assert!(known.contains("MONGODB_URI") && known.len() > 60, "{known:?}");
    let mut sources = BTreeMap::new();
    for folder in ["src", "tests/it"] {
        files(&root().join(folder), "rs", &mut sources);
    }
    sources.retain(|path, _| !path.ends_with("docs.rs"));
    for name in READ_ELSEWHERE {
        let written = format!("\"{name}\"");
        let reads = sources.values().any(|source| source.contains(&written));
        assert!(reads && !known.contains(*name), "{name} is not read, or is a flag's");
    }
    let (mut named, mut wrong) = (BTreeSet::new(), Vec::new());
    for (path, page) in pages() {
        for name in parts(&page).1.iter().flat_map(|code| variables(code)) {
            let is_known = match name.strip_prefix('_') {
                Some(_) => known.iter().any(|known| known.ends_with(&name)),
                None => known.contains(&name),
            };
            let listed = [READ_ELSEWHERE, OF_UPSTREAMS].iter().any(|list| list.contains(&&*name));
            if !is_known && !listed {
                wrong.push(format!("{}: {name}", path.display()));
            }
            named.insert(name);
        }
    }
    assert!(wrong.is_empty(), "no such settings:\n{}", wrong.join("\n"));
    for name in READ_ELSEWHERE.iter().chain(OF_UPSTREAMS) {
        assert!(named.contains(*name), "no page names {name} any more");
    }
    assert!(named.len() > 60, "only {} names were found: the pages are no longer read", named.len());
}

#[tokio::test]
async fn every_command_and_flag_that_the_pages_name_exists() {
    let help = Help::of(Vec::new()).await;
    assert!(help.below["tenants"].below["create"].flags.contains("--domain"));
    let (mut seen, mut wrong) = (0, Vec::new());
    for (path, page) in pages() {
        for words in parts(&page).1.iter().flat_map(|code| commands(code)) {
            seen += 1;
            wrong.extend(help.wrong(words).map(|why| format!("{}: {why}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "no such commands:\n{}", wrong.join("\n"));
    assert!(seen > 60, "only {seen} commands were found: the pages are no longer read");
}

/// As web pages made of Markdown name their headings.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_between_the_pages_leads_to_a_page_and_a_heading() {
    let pages = pages();
    let prose: BTreeMap<_, _> = pages.iter().map(|(path, page)| (path.clone(), parts(page).0)).collect();
    let mut seen = 0;
    for (path, text) in &prose {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let target = target.canonicalize();
            let target = target.unwrap_or_else(|why| panic!("{}: {link}: {why}", path.display()));
            let headings = prose.get(&target).into_iter().flat_map(|text| text.lines());
            let mut headings = headings.filter(|line| line.starts_with('#'));
            let there = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
            assert!(heading.is_empty() || there, "{}: {link} leads to no heading", path.display());
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} links were found: the pages are no longer read");
}

/// The first page can be read at once, and leads to each other one.
#[test]
fn the_first_page_is_short_and_leads_to_every_page() {
    let pages = pages();
    let first = root().join("README.md");
    assert!(pages[&first].len() <= 6144, "README has {} bytes", pages[&first].len());
    let (mut reached, mut next) = (BTreeSet::new(), vec![first]);
    while let Some(path) = next.pop() {
        let Some(page) = pages.get(&path).filter(|_| reached.insert(path.clone())) else { continue };
        let text = parts(page).0;
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let targets = links.filter(|link| !link.is_empty() && !link.contains("://"));
        next.extend(targets.filter_map(|link| path.parent().unwrap().join(link).canonicalize().ok()));
    }
    let unreached: Vec<_> = pages.keys().filter(|path| !reached.contains(*path)).collect();
    assert!(unreached.is_empty(), "no link leads to {unreached:?}");
}

#[test]
fn the_tests_that_prove_a_promise_are_there() {
    let page = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let named = parts(&page).1;
    let named: Vec<_> = named.iter().filter_map(|code| code.split_once("::")).collect();
    assert!(named.len() > 20, "only {} tests are named", named.len());
    for (file, test) in named {
        let text = fs::read_to_string(root().join(format!("tests/it/{file}.rs"))).expect(file);
        assert!(text.contains(&format!("async fn {test}()")), "{file}::{test} is not there");
    }
}

#[tokio::test]
async fn each_setting_is_on_the_page_of_settings() {
    let page = fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let named: BTreeSet<String> = parts(&page).1.iter().flat_map(|code| variables(code)).collect();
    let known = Help::of(vec!["run".to_owned()]).await.variables;
    assert!(known.len() > 40, "{known:?}");
    // Where a secret may be in a file, the page says so beside the variable.
    let is_there = |name: &str| named.contains(name) || page.contains(&format!("`{name}`"));
    let is_named = |name: &str| is_there(name) || name.strip_suffix("_FILE").is_some_and(is_there);
    let missing: Vec<_> = known.iter().filter(|name| !is_named(name)).collect();
    assert!(missing.is_empty(), "docs/settings.md lacks {missing:?}");
}
