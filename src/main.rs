//! The command line.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tenantry::config::{Given, Mistakes};
use tenantry::telemetry;
use tokio::signal::unix::{SignalKind, signal};
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
    tenantry run";

fn main() -> ExitCode {
    // Lives as long as the process; without the feature `failpoints` it does nothing.
    let _failpoints = fail::has_failpoints().then(fail::FailScenario::setup);
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tenantry: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let command = match cli.command {
        Command::Client(client) => return runtime.block_on(client.execute()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tenantry", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        command => command,
    };
    match runtime.block_on(execute(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tenantry: {error:#}");
            match error.downcast_ref::<Mistakes>() {
                // As clap does for a wrong command line.
                Some(_) => ExitCode::from(2),
                None => ExitCode::FAILURE,
            }
        }
    }
}

async fn execute(command: Command) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    end_on_signal(shutdown.clone())?;
    match command {
        Command::Run(given) => {
            let config = given
                .check()
                .map_err(|mistakes| anyhow::Error::new(mistakes).context("the settings are wrong"))?;
            telemetry::init(config.log_format, config.log_filter.clone());
            Ok(tenantry::run::run(config, shutdown, None).await?)
        }
        #[cfg(feature = "dev")]
        Command::Dev(dev) => dev.execute(shutdown).await,
        #[cfg(feature = "dev")]
        Command::Sim(sim) => sim.execute(shutdown).await,
        // They have been carried out: they need no clean end.
        Command::Client(_) | Command::Completions { .. } => Ok(()),
    }
}

/// The first SIGINT or SIGTERM asks for a clean end, the second ends at once.
fn end_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if shutdown.is_cancelled() {
                eprintln!("tenantry: ended at once; leases that are held will expire by themselves");
                std::process::exit(130);
            }
            eprintln!("tenantry: ending; once more to end at once");
            shutdown.cancel();
        }
    });
    Ok(())
}
