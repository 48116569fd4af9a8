//! The command line.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tenantry::config::{Given, Mistakes};
use tenantry::metrics::{GuideFormat, guide};
use tenantry::telemetry::traces::TRACES_END;
use tenantry::terminal::{print, say};
use tenantry::{environment, signals};
use tokio_util::sync::CancellationToken;

/// Makes Authentik, Stalwart and oCIS match the tenants in MongoDB, and keeps them so.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller and the HTTP API
    ///
    /// Every setting is a flag or an environment variable; a flag wins. Durations are written like 30s,
    /// 10m or 1h 30m. All mistakes in the settings are told at once.
    #[command(after_help = RUN_EXAMPLE)]
    Run(Box<Given>),
    /// Try it: everything embedded, with sample tenants
    ///
    /// Starts a private MongoDB, simulated upstreams and an issuer of tokens beside the controller and its
    /// HTTP API, and ends them with Ctrl-C. A real MongoDB (MONGODB_URI), upstream (AUTHENTIK_API_URL,
    /// STALWART_API_URL, OCIS_API_URL) or issuer (OIDC_ISSUER) is used instead where it is given.
    #[cfg(feature = "dev")]
    Dev(Box<tenantry::dev::Dev>),
    /// Run one simulated upstream alone, on loopback
    ///
    /// It speaks the real one's API as real servers were observed to, quirks included, and can be
    /// tormented: POST /_sim/faults makes it fail, GET /_sim/requests tells what it was asked.
    #[cfg(feature = "dev")]
    Sim(tenantry::dev::upstreams::Sim),
    #[command(flatten)]
    Client(Box<tenantry::cli::Command>),
    /// What each metric means, with its labels, and the alerts and panels that use it
    #[command(
        after_help = "Examples:\n  tenantry metrics | less -S\n  tenantry metrics -o json | jq -r '.[].name'"
    )]
    Metrics {
        /// How it is printed; docs/metrics.md is the second
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: GuideFormat,
    },
    /// Print a script that lets a shell complete tenantry's commands
    ///
    /// bash: source <(tenantry completions bash); zsh: the same in ~/.zshrc after compinit;
    /// fish: tenantry completions fish > ~/.config/fish/completions/tenantry.fish
    Completions { shell: clap_complete::Shell },
}

const RUN_EXAMPLE: &str = "\
Example:
  MONGODB_URI=mongodb://db.acme.test/?replicaSet=rs0 \\
  OIDC_ISSUER=https://id.acme.test/application/o/tenantry/ OIDC_AUDIENCE=tenantry \\
  AUTHENTIK_API_URL=https://id.acme.test AUTHENTIK_API_TOKEN_FILE=/run/secrets/authentik \\
  STALWART_API_URL=https://mail.acme.test STALWART_API_TOKEN_FILE=/run/secrets/stalwart \\
  OCIS_API_URL=https://files.acme.test OCIS_OIDC_CLIENT_ID=web \\
  OCIS_OIDC_TOKEN_URL=https://id.acme.test/application/o/token/ \\
  OCIS_OIDC_USERNAME=tenantry OCIS_OIDC_PASSWORD_FILE=/run/secrets/ocis \\
    tenantry run

Traces are sent by OTLP/HTTP if OTEL_EXPORTER_OTLP_ENDPOINT is set, such as http://127.0.0.1:4318; the other
standard OTEL_* variables count as well.";

fn main() -> ExitCode {
    // Lives as long as the process; without the feature `failpoints` it does nothing.
    let _failpoints = fail::has_failpoints().then(fail::FailScenario::setup);
    let cli = match parse() {
        Ok(cli) => cli,
        Err(told) => return told,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(format_args!("tenantry: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let command = match cli.command {
        Command::Client(client) => return runtime.block_on(client.execute()),
        Command::Metrics { output } => return printed(&guide(output), ExitCode::SUCCESS),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tenantry", &mut script);
            return printed(&String::from_utf8_lossy(&script), ExitCode::SUCCESS);
        }
        command => command,
    };
    match runtime.block_on(execute(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In the form that logs have, once there are any.
            if tracing::dispatcher::has_been_set() {
                tracing::error!("{error:#}");
            } else {
                say(format_args!("tenantry: {error:#}"));
            }
            match error.downcast_ref::<Mistakes>() {
                // As clap does for a wrong command line.
                Some(_) => ExitCode::from(2),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// The command line, with the environment's part of it. What is to be told instead, such as help or a
/// mistake, has been told when this returns an exit code.
fn parse() -> Result<Cli, ExitCode> {
    let mut command = environment::tidied(Cli::command());
    let cli = command.try_get_matches_from_mut(std::env::args_os());
    let cli = cli.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    cli.map_err(|error| {
        let error = error.format(&mut command);
        if !error.use_stderr() {
            let text = error.render();
            let text =
                if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
            return printed(&text, ExitCode::SUCCESS);
        }
        // There is no place left to tell that this failed.
        let _ = error.print();
        ExitCode::from(2)
    })
}

/// Prints what was asked for. An output that is not whole is a failure.
fn printed(text: &str, exit: ExitCode) -> ExitCode {
    match print(text) {
        Ok(_) => exit,
        Err(error) => {
            say(format_args!("tenantry: the output is not whole: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    signals::end_on_request(shutdown.clone())?;
    match command {
        Command::Run(given) => {
            let config = given.check().inspect_err(|_| given.log_as_given())?;
            let traces = tenantry::run::observe(&config)?;
            let ended = tenantry::run::run(config, shutdown, None).await;
            if let Some(traces) = traces {
                traces.end(TRACES_END).await;
            }
            Ok(ended?)
        }
        #[cfg(feature = "dev")]
        Command::Dev(dev) => {
            signals::end_with_the_terminal(shutdown.clone())?;
            dev.execute(shutdown).await
        }
        #[cfg(feature = "dev")]
        Command::Sim(sim) => {
            signals::end_with_the_terminal(shutdown.clone())?;
            sim.execute(shutdown).await
        }
        // They have been carried out: they need no clean end.
        Command::Client(_) | Command::Metrics { .. } | Command::Completions { .. } => Ok(()),
    }
}
