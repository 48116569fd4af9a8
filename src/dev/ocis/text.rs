//! How spaces look in JSON. The text is written piece by piece, so that a list of a hundred thousand
//! takes neither the memory nor the time of a tree.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;

use super::Flavour;
use super::state::{Drive, Grantee, Rank, User};

/// What the look of a space depends on beside the space.
#[derive(Debug, Clone)]
pub struct Scene {
    pub flavour: Flavour,
    pub url: String,
    pub storage: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As GET, PATCH and lists of v1.0 show it.
    Full,
    /// As POST shows it: on oCIS 3.1 with no more of the quota than the total (observed).
    Created,
    /// As v1beta1 lists it: permissions with their ids and role definitions.
    Beta,
}

/// One entry of a list.
#[derive(Debug, Clone)]
pub enum Shown {
    Project(Arc<Drive>),
    Personal(User),
    /// The virtual `Shares`.
    Shares,
}

impl Shown {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Project(_) => "project",
            Self::Personal(_) => "personal",
            Self::Shares => "virtual",
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Project(drive) => &drive.name,
            Self::Personal(user) => &user.display_name,
            Self::Shares => "Shares",
        }
    }

    pub fn modified(&self) -> Option<jiff::Timestamp> {
        match self {
            Self::Project(drive) => Some(drive.modified),
            Self::Personal(user) => Some(user.since),
            Self::Shares => None,
        }
    }
}

/// Bodies up to this size have a Content-Length; larger ones are chunked, in pieces of about that size.
const PIECE: usize = 64 << 10;
/// What is left of a disk, where nothing limits a space.
const FREE: i64 = 73_849_970_688;
const SHARES: &str = "a0ca6a90-a365-4782-871e-d44447bbc668$a0ca6a90-a365-4782-871e-d44447bbc668";

/// A string, escaped as Go does it: angle brackets and ampersands too.
pub fn string(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let escaped = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '<' => "\\u003c",
            '>' => "\\u003e",
            '&' => "\\u0026",
            c if c < ' ' => "",
            _ => continue,
        };
        out.push_str(&text[plain..at]);
        if escaped.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push_str(escaped);
        }
        plain = at + c.len_utf8();
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

fn field(out: &mut String, name: &str, text: &str) {
    let _ = write!(out, "\"{name}\":");
    string(out, text);
}

pub fn drive(scene: &Scene, drive: &Drive, shape: Shape) -> String {
    let mut out = String::with_capacity(1200);
    write_drive(&mut out, scene, drive, shape);
    out
}

fn write_drive(out: &mut String, scene: &Scene, drive: &Drive, shape: Shape) {
    out.push('{');
    if !drive.description.is_empty() {
        field(out, "description", &drive.description);
        out.push(',');
    }
    field(out, "driveAlias", &drive.alias);
    let (storage, space) = (&scene.storage, &drive.space);
    let _ = write!(
        out,
        ",\"driveType\":\"project\",\"id\":\"{storage}${space}\",\"lastModifiedDateTime\":\"{}\",",
        drive.modified
    );
    field(out, "name", &drive.name);
    // The space itself is its owner, not the account that made it (observed).
    let _ =
        write!(out, ",\"owner\":{{\"user\":{{\"displayName\":\"\",\"id\":\"{space}\"}}}},\"quota\":{{");
    let bare = drive.disabled || (shape == Shape::Created && scene.flavour == Flavour::Ocis31);
    if bare {
        let _ = write!(out, "\"total\":{}}}", drive.quota);
    } else {
        write_quota(out, scene, drive.quota, drive.used);
    }
    out.push_str(",\"root\":{");
    if drive.disabled {
        out.push_str("\"deleted\":{\"state\":\"trashed\"},");
    }
    let etag = drive.etag;
    let _ =
        write!(out, "\"eTag\":\"\\\"{etag:032x}\\\"\",\"id\":\"{storage}${space}\",\"permissions\":[");
    // In no particular order (observed).
    let turn = rand::random_range(0..drive.members.len().max(1));
    let turned = drive.members.iter().cycle().skip(turn).take(drive.members.len());
    for (index, member) in turned.enumerate() {
        if index > 0 {
            out.push(',');
        }
        if shape == Shape::Beta {
            write_permission(out, &member.who, &member.display_name, member.rank, None);
        } else {
            let identity = identity(scene.flavour, &member.who, &member.display_name);
            let _ = write!(out, "{{\"grantedToIdentities\":[{identity}],");
            if scene.flavour != Flavour::Ocis31 {
                let _ = write!(out, "\"grantedToV2\":{identity},");
            }
            let _ = write!(out, "\"roles\":[\"{}\"]}}", member.rank.name());
        }
    }
    let url = &scene.url;
    let _ = write!(
        out,
        "],\"webDavUrl\":\"{url}/dav/spaces/{storage}${space}\"}},\"webUrl\":\"{url}/f/{storage}${space}\"}}"
    );
}

fn write_quota(out: &mut String, scene: &Scene, total: i64, used: i64) {
    let remaining = match (total, scene.flavour) {
        (0, Flavour::Ocis31) => FREE,
        (0, Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud) => i64::MAX,
        _ => total.saturating_sub(used),
    };
    let _ = write!(
        out,
        "\"remaining\":{remaining},\"state\":\"normal\",\"total\":{total},\"used\":{used}}}"
    );
}

/// `{"user":{…}}` or `{"group":{…}}`.
fn identity(flavour: Flavour, who: &Grantee, display_name: &str) -> String {
    let mut out = String::new();
    match who {
        Grantee::User(id) => {
            out.push_str("{\"user\":{");
            if flavour != Flavour::Ocis31 {
                out.push_str("\"@libre.graph.userType\":\"Member\",");
            }
            field(&mut out, "displayName", display_name);
            let _ = write!(out, ",\"id\":\"{id}\"}}}}");
        }
        Grantee::Group(id) => {
            out.push_str("{\"group\":{");
            field(&mut out, "displayName", display_name);
            let _ = write!(out, ",\"id\":\"{id}\"}}}}");
        }
    }
    out
}

/// A permission as v1beta1 shows it; an invitation also tells who invited.
pub fn write_permission(
    out: &mut String,
    who: &Grantee,
    display_name: &str,
    rank: Rank,
    invited_by: Option<&User>,
) {
    let identity = |who, name| identity(Flavour::OpenCloud, who, name);
    let _ = write!(out, "{{\"grantedToV2\":{},", identity(who, display_name));
    let _ = match who {
        Grantee::User(id) => write!(out, "\"id\":\"u:{id}\","),
        Grantee::Group(id) => write!(out, "\"id\":\"g:{id}\","),
    };
    if let Some(user) = invited_by {
        let inviter = identity(&Grantee::User(user.id.clone()), &user.display_name);
        let _ = write!(out, "\"invitation\":{{\"invitedBy\":{inviter}}},");
    }
    let _ = write!(out, "\"roles\":[\"{}\"]}}", rank.id());
}

/// A user's own space.
pub fn personal(scene: &Scene, user: &User) -> String {
    let mut out = String::new();
    write_personal(&mut out, scene, user);
    out
}

fn write_personal(out: &mut String, scene: &Scene, user: &User) {
    let (storage, id, url) = (&scene.storage, &user.id, &scene.url);
    out.push('{');
    field(out, "driveAlias", &format!("personal/{}", user.name));
    let _ = write!(
        out,
        ",\"driveType\":\"personal\",\"id\":\"{storage}${id}\",\"lastModifiedDateTime\":\"{}\",",
        user.since
    );
    field(out, "name", &user.display_name);
    let _ = write!(out, ",\"owner\":{{\"user\":{{\"displayName\":\"\",\"id\":\"{id}\"}}}},\"quota\":{{");
    write_quota(out, scene, 0, 0);
    let _ = write!(
        out,
        ",\"root\":{{\"eTag\":\"\\\"{:032x}\\\"\",\"id\":\"{storage}${id}\",\"webDavUrl\":\"{url}/dav/spaces/{storage}${id}\"}},\"webUrl\":\"{url}/f/{storage}${id}\"}}",
        user.since.as_nanosecond()
    );
}

fn write_shares(out: &mut String, url: &str) {
    let _ = write!(
        out,
        "{{\"driveAlias\":\"virtual/shares\",\"driveType\":\"virtual\",\"id\":\"{SHARES}\",\"name\":\"Shares\",\"root\":{{\"eTag\":\"DECAFC00FEE\",\"id\":\"{SHARES}\",\"webDavUrl\":\"{url}/dav/spaces/{SHARES}\"}},\"webUrl\":\"{url}/f/{SHARES}\"}}"
    );
}

/// The body of a list: never more keys than `value` (observed).
pub fn list(scene: Scene, drives: Vec<Shown>, shape: Shape) -> Body {
    let mut pieces = pieces(scene, drives, shape);
    let first = pieces.next().unwrap_or_default();
    match pieces.next() {
        None => Body::from(first),
        Some(second) => {
            let all = [first, second].into_iter().chain(pieces);
            let all = all.map(|piece| Ok::<_, std::convert::Infallible>(Bytes::from(piece)));
            Body::from_stream(stream::iter(all))
        }
    }
}

/// The text of a list, written as far as it is asked for.
fn pieces(scene: Scene, drives: Vec<Shown>, shape: Shape) -> impl Iterator<Item = String> + Send {
    let mut drives = drives.into_iter().peekable();
    let (mut begun, mut ended) = (false, false);
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut piece = String::with_capacity(2 * 1024);
        if !begun {
            piece.push_str("{\"value\":[");
            begun = true;
        }
        while let Some(drive) = drives.next() {
            match &drive {
                Shown::Project(drive) => write_drive(&mut piece, &scene, drive, shape),
                Shown::Personal(user) => write_personal(&mut piece, &scene, user),
                Shown::Shares => write_shares(&mut piece, &scene.url),
            }
            if drives.peek().is_some() {
                piece.push(',');
            }
            if piece.len() > PIECE {
                return Some(piece);
            }
        }
        piece.push_str("]}\n");
        ended = true;
        Some(piece)
    })
}
