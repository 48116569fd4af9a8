//! The address of MongoDB, as operators write it: what of it is used, and what is wrong with one that cannot be.
//!
//! A message never quotes what may be part of a password: the driver takes half of one with an unescaped
//! character in it for a host or an option, and says so.

use std::fmt::Write as _;

use mongodb::error::{Error as DriverError, ErrorKind};
use mongodb::options::{ClientOptions, ConnectionString, WriteConcern};

use super::{StoreOptions, Unsuitable, without_labels};

/// Fewer connections than that, and what waits for changes leaves none for work.
const FEWEST_CONNECTIONS: u32 = 10;

/// Databases of the server itself. A path that names one says where the user is.
const OF_THE_SERVER: [&str; 3] = ["admin", "config", "local"];

/// Ways to log in that the driver has, and this build of it does not.
const OTHER_MECHANISMS: [&str; 3] = ["MONGODB-AWS", "MONGODB-OIDC", "GSSAPI"];

const SHAPE: &str = "it must be of the form mongodb://user:password@host:port/database?replicaSet=name, with special \
                     characters in user and password escaped (%40 for @)";

/// Checks the form of an address, without looking anything up.
///
/// # Errors
/// When it cannot be one.
pub fn check_uri(uri: &str) -> Result<(), Unsuitable> {
    parse(uri).map(drop)
}

/// The database that the path of an address names, unless it is one of the server's own.
pub fn database_of(uri: &str) -> Option<String> {
    let database = parse(uri).ok()?.default_database?;
    (!OF_THE_SERVER.contains(&database.as_str())).then_some(database)
}

fn parse(uri: &str) -> Result<ConnectionString, Unsuitable> {
    let mut parsed = ConnectionString::parse(uri).map_err(|_| Unsuitable::Uri(why(uri)))?;
    match parsed.max_pool_size {
        // No limit but ours. The driver refuses what the format allows.
        Some(0) => parsed.max_pool_size = None,
        Some(few) if few < FEWEST_CONNECTIONS => {
            return Err(Unsuitable::Uri(format!(
                "maxPoolSize must be 0, for as many connections as the workers need, or at least \
                 {FEWEST_CONNECTIONS}: those that wait for changes occupy some"
            )));
        }
        _ => {}
    }
    Ok(parsed)
}

/// What the driver shall do, from the address and from what tenantry depends on.
pub(super) async fn client_options(options: &StoreOptions) -> Result<ClientOptions, Unsuitable> {
    let given = parse(&options.uri)?;
    let set_aside = [
        ("w, wtimeoutMS or journal", given.write_concern.is_some()),
        ("readPreference", given.read_preference.is_some()),
        ("serverSelectionTimeoutMS", given.server_selection_timeout.is_some()),
    ];
    for (option, _) in set_aside.into_iter().filter(|(_, given)| *given) {
        tracing::warn!(
            option,
            "this option of MONGODB_URI is not used: tenantry writes to the majority, reads from the primary, and \
             waits for a server as long as REQUEST_TIMEOUT allows"
        );
    }
    let mut client = ClientOptions::parse(given).await.map_err(|error| match error.kind.as_ref() {
        ErrorKind::DnsResolve { .. } => Unsuitable::Uri("its SRV record cannot be resolved".into()),
        _ => Unsuitable::Uri(why(&options.uri)),
    })?;
    client.app_name.get_or_insert_with(|| "tenantry".into());
    // A fence only holds if a claim that was answered cannot be rolled back by a failover.
    client.write_concern = Some(WriteConcern::majority());
    client.selection_criteria = None;
    client.server_selection_timeout = Some(options.operation_timeout / 2);
    client.connect_timeout.get_or_insert(options.operation_timeout / 2);
    let enough = options.max_connections.max(client.min_pool_size.unwrap_or(0));
    client.max_pool_size.get_or_insert(enough);
    Ok(client)
}

/// Says what of a client's options the driver does not take.
pub(super) fn not_taken(error: &DriverError) -> Unsuitable {
    Unsuitable::Uri(without_labels(error))
}

/// What is wrong with an address that the driver does not understand.
fn why(uri: &str) -> String {
    if !uri.starts_with("mongodb://") && !uri.starts_with("mongodb+srv://") {
        return format!("it must begin with mongodb:// or mongodb+srv://; {SHAPE}");
    }
    let mistakes = match uri.split_once('?') {
        // What looks like options may be part of a password.
        Some((_, options)) if !options.contains('@') => options.split('&').filter_map(mistake).collect(),
        _ => Vec::new(),
    };
    if mistakes.is_empty() { SHAPE.into() } else { mistakes.join("; ") }
}

/// What is wrong with one option, if anything is.
fn mistake(option: &str) -> Option<String> {
    let Some((name, value)) = option.split_once('=') else {
        return (!option.is_empty())
            .then(|| format!("the option {} has no value (name=value)", shown(option)));
    };
    // With this and nothing else, any error is about the option.
    let error = ConnectionString::parse(format!("mongodb://user:password@host/?{option}")).err()?;
    let said = match error.kind.as_ref() {
        ErrorKind::InvalidArgument { message, .. } => message.as_str(),
        _ => "",
    };
    let name_shown = shown(name);
    Some(match name.to_ascii_lowercase().as_str() {
        "timeoutms" => format!(
            "the option {name_shown} is not supported; the setting REQUEST_TIMEOUT bounds every operation"
        ),
        "authmechanism" => {
            let mechanism = OTHER_MECHANISMS.iter().find(|other| other.eq_ignore_ascii_case(value));
            let mechanism = mechanism.map_or("this value", |mechanism| *mechanism);
            // The driver says so when the user it needs is no part of the trial.
            if ["MONGODB-X509", "PLAIN"].contains(&value) {
                return None;
            }
            format!(
                "the option {name_shown} does not support {mechanism}; it may be SCRAM-SHA-256, SCRAM-SHA-1, \
                 MONGODB-X509 or PLAIN"
            )
        }
        "compressors" => format!("the option {name_shown} knows snappy, zlib and zstd"),
        other if other.starts_with("proxy") => {
            format!("the option {name_shown} is not supported; MongoDB is reached without a proxy")
        }
        // They need another beside them, which is there or is what the driver misses in the whole.
        "readpreferencetags"
        | "maxstalenessseconds"
        | "srvservicename"
        | "srvmaxhosts"
        | "zlibcompressionlevel" => return None,
        _ if said.contains("is an invalid option") => {
            let mut text = format!("the option {name_shown} is not known");
            if let Some((_, similar)) = said.split_once("similar name exists: ") {
                let _ = write!(text, "; is it {similar}?");
            }
            text
        }
        _ => format!(
            "the value of the option {name_shown} cannot be used; check it in MongoDB's description of \
                      connection strings"
        ),
    })
}

/// A name as it may be shown: what does not look like one may be anything.
fn shown(name: &str) -> String {
    let fine = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if fine { name.to_owned() } else { "(of a name that is no name)".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(uri: &str) -> String {
        match check_uri(uri) {
            Err(Unsuitable::Uri(why)) => why,
            other => panic!("{uri}: {other:?}"),
        }
    }

    #[test]
    fn an_option_that_is_not_supported_is_named_with_what_to_do() {
        for (options, said) in [
            ("timeoutMS=5000", "timeoutMS is not supported; the setting REQUEST_TIMEOUT"),
            ("authMechanism=MONGODB-AWS", "does not support MONGODB-AWS; it may be SCRAM-SHA-256"),
            ("authMechanism=GSSAPI", "does not support GSSAPI"),
            ("compressors=lz4", "compressors knows snappy, zlib and zstd"),
            ("replicaset=rs0&replcaSet=rs0", "replcaSet is not known; is it replicaset?"),
            ("madeUp=1", "madeUp is not known"),
            ("tls=yes", "value of the option tls cannot be used"),
            ("maxPoolSize=many", "value of the option maxPoolSize cannot be used"),
            ("maxPoolSize=3", "maxPoolSize must be 0"),
            ("retryWrites", "retryWrites has no value"),
            ("proxyHost=h", "proxyHost is not supported"),
        ] {
            let why = refused(&format!("mongodb://u:p@h/?{options}"));
            assert!(why.contains(said), "{options}: {why}");
        }
        let both = refused("mongodb://h/?timeoutMS=1&tls=yes");
        assert!(both.contains("timeoutMS") && both.contains("tls"), "{both}");
    }

    #[test]
    fn what_the_driver_supports_is_supported() {
        for options in [
            "compressors=zlib",
            "compressors=snappy,zstd",
            "compressors=zlib&zlibCompressionLevel=9",
            "maxPoolSize=0",
            "maxPoolSize=50&minPoolSize=10",
            "authMechanism=SCRAM-SHA-256&authSource=admin",
            "readPreference=secondary&readPreferenceTags=dc:a",
            "retryWrites=false&w=1&tls=true",
        ] {
            assert_eq!(check_uri(&format!("mongodb://u:p@h/?{options}")), Ok(()), "{options}");
        }
        let x509 = "mongodb://h/?authMechanism=MONGODB-X509&tls=true";
        assert_eq!(check_uri(x509), Ok(()));
    }

    #[test]
    fn an_address_that_cannot_be_used_is_not_quoted() {
        for uri in [
            "mongodb://user:hunter2/x@h/?replicaSet=rs0",
            "mongodb://user:hunter2?x=hunter2@h/?replicaSet=rs0",
            "mongodb://user:hunter2@@h",
            "postgres://user:hunter2@h",
            "hunter2",
            "mongodb://h/?hunter2-hunter2-hunter2-hunter2-hunter2-hunter2=1",
        ] {
            let why = refused(uri);
            assert!(!why.contains("hunter2"), "{uri}: {why}");
        }
    }

    #[test]
    fn a_database_in_the_path_counts_unless_it_is_the_servers() {
        let named = |path: &str| database_of(&format!("mongodb://u:p@h/{path}"));
        assert_eq!(named("acme?replicaSet=rs0").as_deref(), Some("acme"));
        for none in ["", "?replicaSet=rs0", "admin", "local?tls=true", "config"] {
            assert_eq!(named(none), None, "{none:?}");
        }
    }
}
