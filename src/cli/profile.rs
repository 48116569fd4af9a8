//! Contexts: which API the command line talks to, and as whom, so that no variables need to be exported.
//!
//! The file is written by people, and only read here; which context is the current one stands beside it.
//!
//! # Guarantees
//!
//! * What is given, as a flag or a variable, comes before the context.
//! * A context's credentials go to the context's address only: with another `TENANTRY_URL` they are not used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::client::{Connection, DEFAULT_URL, some};
use super::failure::Failure;
use super::private;
use super::show::{self, Output};
use super::token::{ClientCredentials, Source};

/// The file of contexts.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    url: String,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    login: Option<Login>,
    client: Option<Client>,
}

/// How a person logs in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    pub issuer: String,
    pub client_id: String,
    #[serde(default = "scope_of_people")]
    pub scope: String,
}

/// How a service gets its tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    token_url: String,
    client_id: String,
    client_secret_file: PathBuf,
    #[serde(default = "scope_of_services")]
    scope: String,
}

fn scope_of_people() -> String {
    "openid profile email offline_access".into()
}

fn scope_of_services() -> String {
    "openid profile email".into()
}

/// What a command uses.
pub struct Resolved {
    /// Of the context, where one is used.
    pub context: Option<String>,
    pub url: String,
    pub ca_file: Option<PathBuf>,
    pub source: Source,
}

/// # Errors
/// When there is no such context, or the file is wrong.
pub fn resolve(connection: &Connection) -> Result<Resolved, Failure> {
    let given_url = some(&connection.url);
    let named = some(&connection.context).map(ToOwned::to_owned);
    let name = match (named, given_url) {
        (Some(name), _) => Some(name),
        // The current context is about another address.
        (None, Some(_)) => None,
        (None, None) => current()?,
    };
    let context = name.as_deref().map(find).transpose()?;
    let url = given_url.or(context.as_ref().map(|context| context.url.as_str())).unwrap_or(DEFAULT_URL);
    let own = context.as_ref().filter(|context| context.url == url);
    let source = match Source::given(connection)? {
        Source::None => {
            own.zip(name.as_deref()).map_or(Ok(Source::None), |(own, name)| own.source(name))?
        }
        given => given,
    };
    let ca_file = connection.ca_file.clone().filter(|file| !file.as_os_str().is_empty());
    Ok(Resolved {
        url: url.to_owned(),
        ca_file: ca_file.or_else(|| context.as_ref()?.ca_file.clone()),
        source,
        context: name,
    })
}

impl Context {
    fn source(&self, name: &str) -> Result<Source, Failure> {
        match (&self.token_file, &self.login, &self.client) {
            (None, None, None) => Ok(Source::None),
            (Some(file), None, None) => Source::file(file),
            (None, Some(login), None) => Ok(Source::Login(login.clone())),
            (None, None, Some(client)) => {
                let secret = fs::read_to_string(&client.client_secret_file).map_err(|error| {
                    let file = client.client_secret_file.display();
                    Failure::usage(format!("client_secret_file: {file} cannot be read: {error}"))
                })?;
                Ok(Source::Client(ClientCredentials {
                    setting: format!("token_url of the context {name}"),
                    token_url: client.token_url.clone(),
                    client_id: client.client_id.clone(),
                    client_secret: secret.trim().into(),
                    scope: client.scope.clone(),
                }))
            }
            _ => Err(Failure::usage(format!(
                "the context {name} has several of token_file, login and client: give one"
            ))),
        }
    }

    fn token(&self) -> &'static str {
        match (&self.token_file, &self.login, &self.client) {
            (Some(_), ..) => "file",
            (_, Some(_), _) => "login",
            (_, _, Some(_)) => "client",
            _ => "none",
        }
    }
}

/// The file of contexts: `TENANTRY_CONFIG`, or its usual place.
fn file() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("TENANTRY_CONFIG").or_else(|| {
        let folder = path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")));
        folder.map(|folder| folder.join("tenantry/config.toml"))
    })
}

/// What is kept beside the file of contexts.
///
/// # Errors
/// When no variable says where that is.
pub fn beside(name: &str) -> Result<PathBuf, Failure> {
    let file = file()
        .ok_or_else(|| Failure::usage("neither TENANTRY_CONFIG nor HOME says where the contexts are"))?;
    Ok(file.parent().unwrap_or(Path::new(".")).join(name))
}

const CURRENT: &str = "current-context";

fn read() -> Result<Profile, Failure> {
    let Some(file) = file() else { return Ok(Profile::default()) };
    let wrong = |why: String| Failure::usage(format!("{}: {why}", file.display()));
    match fs::read_to_string(&file) {
        Ok(text) => {
            toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Profile::default()),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn find(name: &str) -> Result<Context, Failure> {
    let mut profile = read()?;
    profile.contexts.remove(name).ok_or_else(|| {
        let names: Vec<_> = profile.contexts.keys().map(String::as_str).collect();
        let file = file().unwrap_or_default();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Failure::usage(format!("there is no context {name} in {}; there are: {there}", file.display()))
    })
}

/// The context in use, if one was chosen; of one alone no choice is needed.
fn current() -> Result<Option<String>, Failure> {
    let chosen = beside(CURRENT).ok().and_then(|path| fs::read_to_string(path).ok());
    let chosen = chosen.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    if chosen.is_some() {
        return Ok(chosen);
    }
    let mut names = read()?.contexts.into_keys();
    Ok(names.next().filter(|_| names.next().is_none()))
}

#[derive(Debug, Args)]
pub struct Contexts {
    #[command(subcommand)]
    command: ContextsCommand,
}

#[derive(Debug, Subcommand)]
enum ContextsCommand {
    /// Use a context from now on
    Use { name: String },
    /// The contexts that there are
    List {
        #[command(flatten)]
        output: Output,
    },
}

const COLUMNS: [(&str, &str); 4] =
    [("NAME", "name"), ("CURRENT", "current"), ("URL", "url"), ("TOKEN", "token")];

impl Contexts {
    pub fn run(self) -> Result<String, Failure> {
        match self.command {
            ContextsCommand::Use { name } => {
                let context = find(&name)?;
                private::write(&beside(CURRENT)?, &format!("{name}\n"))?;
                Ok(format!("{name}: {}\n", context.url))
            }
            ContextsCommand::List { output } => {
                let current = current()?;
                let items = read()?.contexts.into_iter().map(|(name, context)| {
                    let is_current = current.as_ref() == Some(&name);
                    json!({
                        "name": name, "current": is_current, "url": context.url, "token": context.token(),
                    })
                });
                let items: Vec<_> = items.collect();
                Ok(show::items(&json!({ "items": items }), &COLUMNS, output.output))
            }
        }
    }
}
