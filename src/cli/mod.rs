//! The command line for people and scripts, over the HTTP API.

mod apply;
mod batch;
mod client;
mod commands;
mod desired;
mod document;
mod editor;
mod export;
mod failure;
mod filters;
mod help;
mod login;
mod manifest;
mod printable;
mod private;
mod profile;
mod prune;
mod ready;
mod show;
mod table;
mod token;
mod upstreams;
mod wait;
mod watch;
mod whoami;
mod yaml;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use self::apply::{Apply, Diff, Import};
use self::client::{Ask, Client, Connection};
use self::commands::Listing;
use self::desired::{Changes, Given};
use self::export::Export;
use self::failure::Failure;
use self::filters::Filters;
use self::help::{
    APPLY_HELP, CONTEXT_HELP, DIFF_EXAMPLES, EXIT_CODES, EXPORT_EXAMPLES, READY_HELP, STOP_EXAMPLES,
    TENANTS_EXAMPLES,
};
use self::login::{LogIn, LogOut};
use self::profile::Contexts;
use self::ready::IsReady;
use self::show::Output;
use self::upstreams::Upstreams;
use self::whoami::WhoAmI;
use crate::tenant::Slug;
use crate::terminal::{print, say};

/// What talks to a running tenantry.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, show, edit and follow tenants
    #[command(after_help = format!("{TENANTS_EXAMPLES}\n\n{EXIT_CODES}"), arg_required_else_help = true)]
    Tenants(Tenants),
    /// Make tenants what documents say: create them, edit them, leave them if nothing differs
    #[command(after_help = format!("{APPLY_HELP}\n\n{EXIT_CODES}"))]
    Apply(Apply),
    /// What `tenantry apply` would change, field by field; nothing is changed
    #[command(after_help = format!("{DIFF_EXAMPLES}\n\n{EXIT_CODES}"))]
    Diff(Diff),
    /// Write the desired state of all tenants, or of some, as documents
    #[command(after_help = format!("{EXPORT_EXAMPLES}\n\n{EXIT_CODES}"))]
    Export(Export),
    /// Create the tenants that documents describe and that are not there; others are left as they are
    #[command(after_help = format!("{EXPORT_EXAMPLES}\n\n{EXIT_CODES}"))]
    Import(Import),
    /// Log in as a person, in a browser on any device; the token is kept and renewed
    #[command(after_help = format!("{CONTEXT_HELP}\n\n{EXIT_CODES}"))]
    Login(LogIn),
    /// Forget the token of `tenantry login`
    #[command(after_help = EXIT_CODES)]
    Logout(LogOut),
    /// Who the API takes you for, what you may do, and until when
    #[command(after_help = format!("Examples:\n  tenantry whoami\n  tenantry whoami --context staging -o json\n\n{EXIT_CODES}"))]
    Whoami(WhoAmI),
    /// Whether a process is ready: exits with 0 if it is, with 1 and the reason if it is not
    #[command(after_help = format!("{READY_HELP}\n\n{EXIT_CODES}"))]
    Ready(IsReady),
    /// Which API to talk to, and as whom: a file of named contexts
    #[command(after_help = format!("{CONTEXT_HELP}\n\n{EXIT_CODES}"), arg_required_else_help = true)]
    Context(Contexts),
    /// Stop all writing to the upstreams, or to one of them
    #[command(after_help = format!("{STOP_EXAMPLES}\n\n{EXIT_CODES}"))]
    Stop(Stop),
    /// Go on after `tenantry stop`
    #[command(after_help = format!("{STOP_EXAMPLES}\n\n{EXIT_CODES}"))]
    Start(Stop),
    /// What has been stopped
    #[command(after_help = EXIT_CODES)]
    Stops(List),
    /// Resources in the upstreams whose tenant is gone
    #[command(after_help = EXIT_CODES)]
    Orphans(Orphans),
    /// What happened to the fleet: stops, guards, orphans; the latest first
    #[command(after_help = EXIT_CODES)]
    Events(List),
    /// Guards that hold changes back because too much would change at once
    #[command(after_help = EXIT_CODES)]
    Guards(Guards),
    /// How the upstreams are, as the process that answers has seen them
    #[command(after_help = EXIT_CODES)]
    Upstreams(Upstreams),
}

#[derive(Debug, Args)]
pub struct Tenants {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: TenantsCommand,
}

#[derive(Debug, Subcommand)]
enum TenantsCommand {
    /// Create a tenant
    #[command(after_help = "\
Examples:
  tenantry tenants create acme --name 'Acme GmbH'
  tenantry tenants create acme --name 'Acme GmbH' --domain acme.test --quota 10GB --wait=2m
  tenantry tenants create acme --name 'Acme GmbH' --idempotency-key \"$(uuidgen)\"    # may be repeated")]
    Create {
        slug: Slug,
        #[command(flatten)]
        given: Given,
        /// Makes it safe to repeat: the same key and fields create only once
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
        #[command(flatten)]
        settle: Settle,
        #[command(flatten)]
        output: Output,
    },
    /// Show tenants: those named, those that filters let through, or all of them
    #[command(after_help = "\
Examples:
  tenantry tenants get
  tenantry tenants get --ready=false                          # what is wrong
  tenantry tenants get --reason Conflict -o wide
  tenantry tenants get --upstream ocis=error -o name | xargs -n 1 tenantry tenants reconcile
  tenantry tenants get -q acme --sort-by=-createdAt
  tenantry tenants get --ready=false --watch                  # and what becomes of it
  tenantry tenants get acme globex -o yaml
  tenantry tenants get -o json | jq -r '.items[] | [.slug, .steps.ocis.externalId] | @tsv'")]
    Get {
        slugs: Vec<Slug>,
        /// Print a line per tenant, and then one whenever something about it changes
        #[arg(short, long, conflicts_with_all = ["sort_by", "no_headers", "output"])]
        watch: bool,
        #[command(flatten)]
        listing: Listing,
        #[command(flatten)]
        filters: Filters,
    },
    /// Everything about a tenant: spec, steps, conditions, recent events
    #[command(after_help = "Example:\n  tenantry tenants describe acme")]
    Describe { slug: Slug },
    /// Change a tenant, by flags or in an editor
    #[command(after_help = "\
Examples:
  tenantry tenants edit acme --name 'Acme AG' --domain acme.test
  tenantry tenants edit acme --no-domain --quota unlimited --enable ocis --wait
  EDITOR=nano tenantry tenants edit acme    # without flags, in an editor")]
    Edit {
        slug: Slug,
        #[command(flatten)]
        changes: Changes,
        #[command(flatten)]
        settle: Settle,
        #[command(flatten)]
        output: Output,
    },
    /// Look at a tenant's upstreams now, and repair what is not as it should be
    #[command(
        after_help = "Examples:\n  tenantry tenants reconcile acme --wait=30s\n  tenantry tenants reconcile acme --step ocis"
    )]
    Reconcile {
        slug: Slug,
        /// Only this step; may be repeated
        #[arg(long = "step", value_name = "STEP", value_parser = ["authentik", "stalwart", "ocis"])]
        steps: Vec<String>,
        #[command(flatten)]
        settle: Settle,
    },
    /// What a reconcile would do now, field by field; nothing is changed
    #[command(after_help = "\
Without --wait it tells what was last seen. With it, the upstreams are looked at first.

Examples:
  tenantry tenants plan acme --wait
  tenantry tenants plan acme --wait --exit-code || echo 'acme would be changed'")]
    Plan {
        slug: Slug,
        /// Exit with 7 when something would be changed
        #[arg(long)]
        exit_code: bool,
        #[command(flatten)]
        settle: Settle,
        #[command(flatten)]
        output: Output,
    },
    /// Leave a tenant's upstreams alone until it is resumed
    #[command(after_help = "Example:\n  tenantry tenants pause acme")]
    Pause { slug: Slug },
    /// Go on with a tenant that was paused
    #[command(after_help = "Example:\n  tenantry tenants resume acme")]
    Resume { slug: Slug },
    /// Wait until tenants are as they should be
    #[command(after_help = "\
`active`: every service was there once. `ready`: all is as it should be now, the latest edit included.
`deleted`: there is no such tenant any more.

Example:
  tenantry tenants wait acme globex --for=ready --timeout 2m")]
    Wait {
        #[arg(required = true)]
        slugs: Vec<Slug>,
        /// What to wait for
        #[arg(long = "for", value_enum, default_value_t, value_name = "STATE")]
        state: wait::State,
        /// How long, such as 60s or 5m
        #[arg(long, value_parser = humantime::parse_duration, default_value = "60s", value_name = "DURATION")]
        timeout: Duration,
    },
    /// Print a line whenever something about tenants changes
    #[command(after_help = "Examples:\n  tenantry tenants watch\n  tenantry tenants watch acme")]
    Watch { slug: Option<Slug> },
    /// What happened to a tenant, the latest first
    #[command(after_help = "Example:\n  tenantry tenants events acme --limit 20")]
    Events {
        slug: Slug,
        /// How many
        #[arg(long, default_value_t = 50, value_name = "NUMBER")]
        limit: u16,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a tenant; what becomes of its resources is the policy's
    #[command(after_help = "\
Examples:
  tenantry tenants delete acme                     # as the server is set up
  tenantry tenants delete acme --policy delete     # group, mail domain and space too
  tenantry tenants delete -f team.yaml             # those that the documents name
  tenantry tenants undelete acme")]
    Delete {
        #[arg(required_unless_present = "files")]
        slug: Option<Slug>,
        /// The tenants that these documents name: a file, a folder, or - for standard input
        #[arg(short, long = "filename", value_name = "FILE|DIR|-", conflicts_with = "slug")]
        files: Vec<String>,
        #[command(flatten)]
        deletion: Deletion,
    },
    /// Take a deletion back
    #[command(after_help = "Example:\n  tenantry tenants undelete acme")]
    Undelete { slug: Slug },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    Retain,
    Delete,
}

/// What becomes of the resources of tenants that are deleted.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Deletion {
    /// Whether resources in the upstreams stay
    #[arg(long, value_enum, value_name = "POLICY")]
    policy: Option<Policy>,
    /// At once and for good, without the time in which it can be taken back
    #[arg(long)]
    purge: bool,
}

impl Deletion {
    fn of(self, ask: Ask<'_>) -> Ask<'_> {
        let policy = self.policy.map(|policy| match policy {
            Policy::Retain => "retain",
            Policy::Delete => "delete",
        });
        let ask = ask.query("policy", policy.map(ToOwned::to_owned));
        ask.query("purge", self.purge.then(|| "true".to_owned()))
    }
}

/// Whether to wait for the result.
#[derive(Debug, Clone, Copy, Args)]
struct Settle {
    /// Wait until it is done, at most this long
    #[arg(
        long,
        value_parser = humantime::parse_duration,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "60s",
        value_name = "DURATION"
    )]
    wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    connection: Connection,
    /// Only this one: authentik, stalwart or ocis
    #[arg(long, value_name = "UPSTREAM", value_parser = ["authentik", "stalwart", "ocis"])]
    upstream: Option<String>,
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Orphans {
    #[command(flatten)]
    list: List,
    #[command(subcommand)]
    command: Option<OrphansCommand>,
}

#[derive(Debug, Subcommand)]
enum OrphansCommand {
    /// Let a new tenant adopt a resource whose tenant's document was lost
    #[command(after_help = "\
Needs the role admin. The resource is marked as released, and stays as it is otherwise.

Examples:
  tenantry orphans release stalwart b
  tenantry orphans release ocis 'a$b!c' --slug acme")]
    Release {
        #[arg(value_parser = ["authentik", "stalwart", "ocis"])]
        upstream: String,
        /// Its id, as `tenantry orphans` shows it
        id: String,
        /// Of the tenant that may adopt it, where no history tells it
        #[arg(long)]
        slug: Option<Slug>,
    },
}

#[derive(Debug, Args)]
pub struct Guards {
    #[command(flatten)]
    list: List,
    #[command(subcommand)]
    command: Option<GuardsCommand>,
}

#[derive(Debug, Subcommand)]
enum GuardsCommand {
    /// Show a guard and the tenants whose resources differ, with what was seen of each
    Show {
        #[arg(value_parser = ["authentik", "stalwart", "ocis"])]
        upstream: String,
        /// Tenants at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: u32,
        /// Tenants after this one, by id
        #[arg(long, value_name = "TENANT ID")]
        after: Option<String>,
    },
    /// Let a guard's changes happen: a person has looked at them
    Lift {
        #[arg(value_parser = ["authentik", "stalwart", "ocis"])]
        upstream: String,
    },
}

impl Command {
    /// Runs it; what it prints is the result, what went wrong is on standard error.
    pub async fn execute(self) -> ExitCode {
        let printed = self.run().await.and_then(|text| Ok(print(&text)?));
        match printed {
            Ok(_) => ExitCode::SUCCESS,
            Err(failure) => {
                say(format_args!("tenantry: {failure}"));
                ExitCode::from(failure.exit as u8)
            }
        }
    }

    async fn run(self) -> Result<String, Failure> {
        match self {
            Self::Tenants(Tenants { connection, command }) => {
                let client = Client::new(&connection).await?;
                command.run(&client).await
            }
            Self::Apply(apply) => apply.run().await,
            Self::Diff(diff) => diff.run().await,
            Self::Export(export) => export.run().await,
            Self::Import(import) => import.run().await,
            Self::Login(login) => login.run().await,
            Self::Logout(logout) => logout.run(),
            Self::Whoami(whoami) => whoami.run().await,
            Self::Ready(ready) => ready.run().await,
            Self::Context(contexts) => contexts.run(),
            Self::Stop(stop) => {
                commands::stop(&Client::new(&stop.connection).await?, stop.upstream).await
            }
            Self::Start(stop) => {
                commands::start(&Client::new(&stop.connection).await?, stop.upstream).await
            }
            Self::Stops(list) => {
                let client = Client::new(&list.connection).await?;
                commands::list(&client, &["stops"], &commands::STOPS, list.output).await
            }
            Self::Orphans(Orphans { list, command }) => {
                let client = Client::new(&list.connection).await?;
                match command {
                    None => commands::list(&client, &["orphans"], &commands::ORPHANS, list.output).await,
                    Some(OrphansCommand::Release { upstream, id, slug }) => {
                        commands::release_orphan(&client, &upstream, &id, slug).await
                    }
                }
            }
            Self::Events(list) => {
                let client = Client::new(&list.connection).await?;
                commands::list(&client, &["events"], &show::EVENTS, list.output).await
            }
            Self::Upstreams(upstreams) => upstreams.run().await,
            Self::Guards(Guards { list, command }) => {
                let client = Client::new(&list.connection).await?;
                match command {
                    None => commands::list(&client, &["guards"], &commands::GUARDS, list.output).await,
                    Some(GuardsCommand::Show { upstream, limit, after }) => {
                        commands::guard(&client, &upstream, limit, after, list.output).await
                    }
                    Some(GuardsCommand::Lift { upstream }) => commands::lift(&client, &upstream).await,
                }
            }
        }
    }
}

impl TenantsCommand {
    async fn run(self, client: &Client) -> Result<String, Failure> {
        match self {
            Self::Create { slug, given, idempotency_key, settle, output } => {
                let body = given.body(&slug);
                commands::create(client, &slug, body, idempotency_key, settle.wait, output).await
            }
            Self::Get { slugs, filters, watch: true, .. } => {
                watch::watch(client, watch::Watched { slugs, filters }).await
            }
            Self::Get { slugs, filters, listing, .. } => {
                commands::get(client, &slugs, &filters, listing).await
            }
            Self::Describe { slug } => commands::describe(client, &slug).await,
            Self::Edit { slug, changes, settle, output } => {
                commands::edit(client, &slug, &changes, settle.wait, output).await
            }
            Self::Reconcile { slug, steps, settle } => {
                commands::reconcile(client, &slug, &steps, settle.wait).await
            }
            Self::Plan { slug, exit_code, settle, output } => {
                commands::plan(client, &slug, exit_code, settle.wait, output).await
            }
            Self::Pause { slug } => commands::act(client, &slug, "pause", "way to pause tenants").await,
            Self::Resume { slug } => {
                commands::act(client, &slug, "resume", "way to pause tenants").await
            }
            Self::Undelete { slug } => {
                commands::act(client, &slug, "undelete", "way to take deletions back").await
            }
            Self::Wait { slugs, state, timeout } => wait::wait(client, &slugs, state, timeout).await,
            Self::Watch { slug } => {
                let slugs = slug.into_iter().collect();
                watch::watch(client, watch::Watched { slugs, ..Default::default() }).await
            }
            Self::Events { slug, limit, output } => commands::events(client, &slug, limit, output).await,
            Self::Delete { slug: Some(slug), deletion, .. } => {
                commands::delete(client, &slug, deletion).await
            }
            Self::Delete { files, deletion, .. } => prune::delete_named(client, &files, deletion).await,
        }
    }
}
