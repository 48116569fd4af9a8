//! A simulated Authentik: the groups API as servers 2025.12.4 and 2025.8.1 were observed to speak it,
//! quirks included. It is never lenient: what the real one refuses, it refuses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::faults::{self, Faults, empty_405};
use super::server::Server;

/// An answer that ends a request early. Boxed, because it is large and rare.
type Refusal = Box<Response>;

/// Which release to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    /// Names unique in the database; pages of 20, at most 100; `parents`.
    #[default]
    R2025_12,
    /// Names checked, but not safe against races; pages of 100, no maximum; `parent`.
    R2025_8,
}

/// What the holder of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// view, add, change and delete groups.
    Provisioner,
    /// view groups.
    Viewer,
    /// add groups, and see none.
    Adder,
    /// add groups, and see, change and delete those it made.
    Own,
}

/// The simulator: its state survives a stop and restart of its [`Server`].
pub struct Simulator {
    pub server: Server,
    pub faults: Faults,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<Groups>>,
    release: Release,
}

#[derive(Default)]
struct Groups {
    tokens: BTreeMap<String, Rights>,
    by_pk: BTreeMap<String, Group>,
    /// Names to pks; before 2025.12 a name may have several.
    by_name: BTreeMap<String, Vec<String>>,
    /// Makes pks.
    counter: u64,
    /// List everything, as for parameters that the server does not know.
    ignore_filters: bool,
}

#[derive(Debug, Clone)]
struct Group {
    pk: String,
    num_pk: u64,
    name: String,
    attributes: Map<String, Value>,
    users: Vec<i64>,
    parents: Vec<String>,
    is_superuser: bool,
    /// Token that made it, for [`Rights::Own`].
    maker: String,
}

/// Users with these pks exist.
const USERS: std::ops::RangeInclusive<i64> = 1..=100;
const MODEL: &str = "authentik_core.group";

impl Simulator {
    /// Starts a simulator on loopback; port 0 takes a free one. `token` has all rights on groups.
    pub async fn new(port: u16, token: &str, release: Release) -> std::io::Result<Self> {
        let mut groups = Groups::default();
        groups.tokens.insert(token.to_owned(), Rights::Provisioner);
        let shared = Shared { state: Arc::new(Mutex::new(groups)), release };
        let faults = Faults::default();
        let server = Server::start(port, router(shared.clone(), &faults)).await?;
        Ok(Self { server, faults, shared })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn add_token(&self, token: &str, rights: Rights) {
        self.lock().tokens.insert(token.to_owned(), rights);
    }

    pub fn remove_token(&self, token: &str) {
        self.lock().tokens.remove(token);
    }

    /// All groups, as the API shows them.
    pub fn groups(&self) -> Vec<Value> {
        let release = self.shared.release;
        self.lock().by_pk.values().map(|group| group.show(release, false)).collect()
    }

    pub fn count(&self) -> usize {
        self.lock().by_pk.len()
    }

    /// Removes every group of that name, as an administrator might; returns how many there were.
    pub fn delete_named(&self, name: &str) -> usize {
        let mut groups = self.lock();
        let pks = groups.by_name.get(name).cloned().unwrap_or_default();
        for pk in &pks {
            groups.remove(pk);
        }
        pks.len()
    }

    /// Puts a group there without asking the API; returns its pk.
    pub fn plant(&self, name: &str, attributes: Value, users: &[i64]) -> String {
        let attributes = attributes.as_object().cloned().unwrap_or_default();
        let mut groups = self.lock();
        let mut group = groups.new_group(name.to_owned(), "");
        group.attributes = attributes;
        group.users = users.to_vec();
        let pk = group.pk.clone();
        groups.insert(group);
        pk
    }

    /// From now on list everything, as a server does that does not know a parameter.
    pub fn ignore_filters(&self, ignore: bool) {
        self.lock().ignore_filters = ignore;
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Groups {
    fn new_group(&mut self, name: String, maker: &str) -> Group {
        self.counter += 1;
        // A version 4 UUID in form; unpredictable it need not be.
        let mixed = self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pk = format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            mixed >> 32,
            (mixed >> 16) & 0xffff,
            mixed & 0xfff,
            (self.counter >> 12) & 0xfff,
            self.counter,
        );
        Group {
            pk,
            // Five digits, and not unique (observed).
            num_pk: 10_000 + mixed % 90_000,
            name,
            attributes: Map::new(),
            users: Vec::new(),
            parents: Vec::new(),
            is_superuser: false,
            maker: maker.to_owned(),
        }
    }

    fn insert(&mut self, group: Group) {
        self.by_name.entry(group.name.clone()).or_default().push(group.pk.clone());
        self.by_pk.insert(group.pk.clone(), group);
    }

    fn remove(&mut self, pk: &str) -> Option<Group> {
        let group = self.by_pk.remove(pk)?;
        if let Some(pks) = self.by_name.get_mut(&group.name) {
            pks.retain(|other| other != pk);
            if pks.is_empty() {
                self.by_name.remove(&group.name);
            }
        }
        Some(group)
    }

    fn is_named(&self, name: &str, but: Option<&str>) -> bool {
        let pks = self.by_name.get(name).map(Vec::as_slice).unwrap_or_default();
        pks.iter().any(|pk| Some(pk.as_str()) != but)
    }
}

impl Group {
    fn show(&self, release: Release, include_users: bool) -> Value {
        let mut shown = json!({
            "pk": self.pk, "num_pk": self.num_pk, "name": self.name,
            "is_superuser": self.is_superuser, "users": self.users, "attributes": self.attributes,
            "roles": [], "roles_obj": [], "children": [], "children_obj": null,
            "users_obj": if include_users { json!([]) } else { Value::Null },
        });
        match release {
            Release::R2025_12 => {
                shown["parents"] = json!(self.parents);
                shown["parents_obj"] = Value::Null;
                shown["inherited_roles_obj"] = Value::Null;
            }
            Release::R2025_8 => {
                shown["parent"] = json!(self.parents.first());
                shown["parent_name"] = Value::Null;
            }
        }
        shown
    }

    /// Numbers beyond 64 bits are taken, and make every later reading fail (observed).
    fn is_poisoned(&self) -> bool {
        fn poisoned(value: &Value) -> bool {
            match value {
                Value::Number(number) if number.is_f64() => {
                    number.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() > 1.8446744073709552e19)
                }
                Value::Array(values) => values.iter().any(poisoned),
                Value::Object(values) => values.values().any(poisoned),
                _ => false,
            }
        }
        self.attributes.values().any(poisoned)
    }
}

fn router(shared: Shared, faults: &Faults) -> Router {
    Router::new()
        .route("/api/v3/core/groups/", any(collection))
        .route("/api/v3/core/groups/{pk}/", any(member))
        .route("/api/v3/core/users/me/", get(me))
        .route("/-/health/live/", get(|| async { StatusCode::OK }))
        .route("/-/health/ready/", get(|| async { StatusCode::OK }))
        .fallback(unknown)
        .layer(middleware::from_fn(request_id))
        .layer(middleware::from_fn_with_state(faults.clone(), faults::torment))
        .with_state(shared.clone())
        .merge(faults.router())
        .merge(Router::new().route("/_sim/groups", get(inspect)).with_state(shared))
}

/// The account of a token. All tokens are of the first user.
async fn me(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    match authenticate(&shared, &headers) {
        Ok(_) => {
            Json(json!({ "user": { "pk": USERS.start(), "username": "tenantry" } })).into_response()
        }
        Err(refusal) => *refusal,
    }
}

async fn inspect(State(shared): State<Shared>) -> Json<Vec<Value>> {
    let groups = shared.lock();
    Json(groups.by_pk.values().map(|group| group.show(shared.release, false)).collect())
}

async fn request_id(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let id = format!("{:032x}", rand::random::<u128>());
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert("x-authentik-id", id);
    }
    response
}

/// Unknown URLs: a page for GET, and the 405 trap for everything else.
async fn unknown(method: Method) -> Response {
    if method == Method::GET || method == Method::HEAD {
        html(StatusCode::NOT_FOUND)
    } else {
        empty_405()
    }
}

fn html(status: StatusCode) -> Response {
    (status, Html("\n\n<!DOCTYPE html>\n<html\n    lang=\"en\"\n>\n</html>\n")).into_response()
}

fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

fn field(name: &str, text: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ name: [text] }))).into_response()
}

fn not_permitted() -> Response {
    detail(StatusCode::FORBIDDEN, "You do not have permission to perform this action.")
}

fn no_such_group() -> Response {
    detail(StatusCode::NOT_FOUND, "No Group matches the given query.")
}

/// Who asks, or the refusal. There is no 401: it is always 403.
fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<(String, Rights), Refusal> {
    let refuse = |text| Box::new(detail(StatusCode::FORBIDDEN, text));
    let not_provided = "Authentication credentials were not provided.";
    if headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| !accept.contains("json") && !accept.contains("*/*"))
    {
        let text = "Could not satisfy the request Accept header.";
        return Err(Box::new(detail(StatusCode::NOT_ACCEPTABLE, text)));
    }
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, token)) = value.and_then(|value| value.split_once(' ')) else {
        return Err(refuse(not_provided));
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(refuse(match shared.release {
            Release::R2025_12 => not_provided,
            Release::R2025_8 => "Unsupported authentication type",
        }));
    }
    if token.is_empty() {
        return Err(refuse(not_provided));
    }
    match shared.lock().tokens.get(token) {
        Some(rights) => Ok((token.to_owned(), *rights)),
        None => Err(refuse("Token invalid/expired")),
    }
}

fn may_see(rights: Rights, token: &str, group: &Group) -> bool {
    match rights {
        Rights::Provisioner | Rights::Viewer => true,
        Rights::Own => group.maker == token,
        Rights::Adder => false,
    }
}

async fn collection(
    State(shared): State<Shared>,
    method: Method,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (token, rights) = match authenticate(&shared, &headers) {
        Ok(who) => who,
        Err(refusal) => return *refusal,
    };
    match method {
        Method::GET | Method::HEAD => list(&shared, rights, &token, query.as_deref()),
        Method::POST => create(&shared, rights, &token, &headers, &body).await,
        _ => {
            let text = format!("Method \"{method}\" not allowed.");
            detail(StatusCode::METHOD_NOT_ALLOWED, &text)
        }
    }
}

fn list(shared: &Shared, rights: Rights, token: &str, query: Option<&str>) -> Response {
    let pairs: Vec<(String, String)> =
        url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
    let get =
        |name: &str| pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let groups = shared.lock();
    let filter = |name: &str| {
        // An empty value is no filter, and unknown parameters are ignored (observed).
        get(name).filter(|value| !value.is_empty() && !groups.ignore_filters)
    };
    // An account that sees no group at all gets 403 rather than an empty list (observed).
    let sees_some = match rights {
        Rights::Provisioner | Rights::Viewer => true,
        Rights::Adder => false,
        Rights::Own => groups.by_pk.values().any(|group| group.maker == token),
    };
    if !sees_some {
        return not_permitted();
    }
    let attributes = match filter("attributes") {
        None => None,
        Some(text) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(wanted)) => Some(wanted),
            _ => {
                let body = Json(json!(["filter: failed to parse JSON"]));
                return (StatusCode::BAD_REQUEST, body).into_response();
            }
        },
    };
    // By pk, so that a page of a large fleet costs no look at the groups of the others.
    let mut found: Vec<&String> = match filter("name") {
        Some(name) => groups.by_name.get(name).into_iter().flatten().collect(),
        None => groups.by_name.values().flatten().collect(),
    };
    let mut retain = |wanted: &dyn Fn(&Group) -> bool| {
        found.retain(|pk| groups.by_pk.get(*pk).is_some_and(wanted));
    };
    if !matches!(rights, Rights::Provisioner | Rights::Viewer) {
        retain(&|group| may_see(rights, token, group));
    }
    if let Some(wanted) = &attributes {
        retain(&|group| {
            wanted.iter().all(|(path, value)| {
                let mut parts = path.split("__");
                let first = parts.next().and_then(|part| group.attributes.get(part));
                parts.fold(first, |at, part| at?.get(part)) == Some(value)
            })
        });
    }
    if let Some(search) = filter("search") {
        let words: Vec<String> = search.split_whitespace().map(str::to_lowercase).collect();
        retain(&|group| {
            let name = group.name.to_lowercase();
            words.iter().all(|word| name.contains(word))
        });
    }
    if get("ordering") == Some("-name") {
        found.reverse();
    }

    let (default_size, max_size) = match shared.release {
        Release::R2025_12 => (20, 100),
        Release::R2025_8 => (100, usize::MAX),
    };
    let size = get("page_size").and_then(|size| size.parse::<usize>().ok()).filter(|size| *size > 0);
    let size = size.unwrap_or(default_size).min(max_size);
    let pages = found.len().div_ceil(size).max(1);
    let page = match get("page").map_or(Some(1), |page| page.parse::<usize>().ok()) {
        Some(page) if (1..=pages).contains(&page) => page,
        _ => return detail(StatusCode::NOT_FOUND, "Invalid page."),
    };
    let start = (page - 1) * size;
    let shown = found.iter().skip(start).take(size).filter_map(|pk| groups.by_pk.get(*pk));
    let shown: Vec<&Group> = shown.collect();
    if shown.iter().any(|group| group.is_poisoned()) {
        return html(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let include_users = get("include_users") != Some("false");
    let results: Vec<Value> =
        shown.iter().map(|group| group.show(shared.release, include_users)).collect();
    Json(json!({
        "pagination": {
            "next": if page < pages { page + 1 } else { 0 },
            "previous": page - 1,
            "count": found.len(),
            "current": page,
            "total_pages": pages,
            "start_index": if found.is_empty() { 0 } else { start + 1 },
            "end_index": start + results.len(),
        },
        "results": results,
        "autocomplete": { "current_model": MODEL, "models": { MODEL: {
            "name": { "type": "str", "nullable": false, "options": null },
        } } },
    }))
    .into_response()
}

/// The body of a write as an object, or the refusal.
fn read_body(headers: &HeaderMap, body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default();
    if !kind.starts_with("application/json") {
        let text = format!("Unsupported media type \"{kind}\" in request.");
        return Err(Box::new(detail(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text)));
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "list",
                Value::String(_) => "str",
                Value::Bool(_) => "bool",
                Value::Number(_) => "int",
                _ => "NoneType",
            };
            let text = format!("Invalid data. Expected a dictionary, but got {kind}.");
            Err(Box::new(field("non_field_errors", &text)))
        }
        Err(error) => {
            let text = format!("JSON parse error - {error}");
            Err(Box::new(detail(StatusCode::BAD_REQUEST, &text)))
        }
    }
}

/// Fields of a write, checked as the serializer does; `None` where absent.
struct Written {
    name: Option<String>,
    attributes: Option<Map<String, Value>>,
    users: Option<Vec<i64>>,
    parents: Option<Vec<String>>,
}

fn read_fields(
    shared: &Shared,
    body: &Map<String, Value>,
    but: Option<&str>,
) -> Result<Written, Refusal> {
    let duplicate = match shared.release {
        Release::R2025_12 => "Group with this name already exists.",
        Release::R2025_8 => "This field must be unique.",
    };
    let name = match body.get("name") {
        None => None,
        Some(Value::Null) => return Err(Box::new(field("name", "This field may not be null."))),
        Some(Value::String(name)) if name.contains('\0') => {
            return Err(Box::new(field("name", "Null characters are not allowed.")));
        }
        Some(Value::String(name)) => Some(name.trim().to_owned()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(_) => return Err(Box::new(field("name", "Not a valid string."))),
    };
    if let Some(name) = &name {
        if name.is_empty() {
            return Err(Box::new(field("name", "This field may not be blank.")));
        }
        if shared.lock().is_named(name, but) {
            return Err(Box::new(field("name", duplicate)));
        }
    }
    let attributes = match body.get("attributes") {
        None => None,
        Some(Value::Null) => return Err(Box::new(field("attributes", "This field may not be null."))),
        Some(Value::Object(attributes)) => Some(attributes.clone()),
        Some(_) => {
            let text = "Value must be a dictionary, and not have any duplicate keys.";
            return Err(Box::new(field("attributes", text)));
        }
    };
    let users = match body.get("users").and_then(Value::as_array) {
        None => None,
        Some(users) => {
            let users: Vec<i64> = users.iter().filter_map(Value::as_i64).collect();
            if let Some(unknown) = users.iter().find(|user| !USERS.contains(user)) {
                let text = format!("Invalid pk \"{unknown}\" - object does not exist.");
                return Err(Box::new(field("users", &text)));
            }
            Some(users)
        }
    };
    let parents = body
        .get("parents")
        .and_then(Value::as_array)
        .map(|parents| parents.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect());
    if body.get("is_superuser") == Some(&Value::Bool(true)) {
        let text = "User does not have permission to set superuser status to True.";
        return Err(Box::new(field("is_superuser", text)));
    }
    Ok(Written { name, attributes, users, parents })
}

/// Whether the database would fail on it: a name too long for its index, a NUL in a JSON column.
fn database_fails(written: &Written) -> bool {
    let has_nul = written.attributes.as_ref().is_some_and(|attributes| {
        serde_json::to_string(attributes).is_ok_and(|text| text.contains("\\u0000"))
    });
    has_nul || written.name.as_ref().is_some_and(|name| name.len() > 8_191)
}

async fn create(
    shared: &Shared,
    rights: Rights,
    token: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    // Permission is checked before validation (observed).
    if rights == Rights::Viewer {
        return not_permitted();
    }
    let written = match read_body(headers, body).and_then(|body| read_fields(shared, &body, None)) {
        Ok(written) => written,
        Err(refusal) => return *refusal,
    };
    let Some(name) = written.name.clone() else {
        return field("name", "This field is required.");
    };
    if database_fails(&written) {
        return empty_405();
    }
    // Between the check and the insertion others may do the same: that is the race.
    tokio::task::yield_now().await;
    let mut groups = shared.lock();
    if shared.release == Release::R2025_12 && groups.is_named(&name, None) {
        return empty_405();
    }
    let mut group = groups.new_group(name, token);
    group.attributes = written.attributes.unwrap_or_default();
    group.users = written.users.unwrap_or_default();
    group.parents = written.parents.unwrap_or_default();
    let shown = group.show(shared.release, true);
    groups.insert(group);
    (StatusCode::CREATED, Json(shown)).into_response()
}

async fn member(
    State(shared): State<Shared>,
    Path(pk): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (token, rights) = match authenticate(&shared, &headers) {
        Ok(who) => who,
        Err(refusal) => return *refusal,
    };
    let pk = pk.to_lowercase();
    if pk.len() != 36 || !pk.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return detail(StatusCode::NOT_FOUND, "Not found.");
    }
    if rights == Rights::Adder || (rights == Rights::Viewer && !method.is_safe()) {
        return not_permitted();
    }
    let found = shared.lock().by_pk.get(&pk).cloned();
    let Some(group) = found.filter(|group| may_see(rights, &token, group)) else {
        return no_such_group();
    };
    match method {
        Method::GET | Method::HEAD if group.is_poisoned() => html(StatusCode::INTERNAL_SERVER_ERROR),
        Method::GET | Method::HEAD => {
            let include_users = !uri.query().is_some_and(|query| query.contains("include_users=false"));
            Json(group.show(shared.release, include_users)).into_response()
        }
        Method::PATCH | Method::PUT => change(&shared, group, &method, &headers, &body),
        Method::DELETE => match shared.lock().remove(&pk) {
            Some(_) => StatusCode::NO_CONTENT.into_response(),
            None => no_such_group(),
        },
        _ => {
            let text = format!("Method \"{method}\" not allowed.");
            detail(StatusCode::METHOD_NOT_ALLOWED, &text)
        }
    }
}

fn change(
    shared: &Shared,
    mut group: Group,
    method: &Method,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    let body = read_body(headers, body);
    let written = match body.and_then(|body| read_fields(shared, &body, Some(&group.pk))) {
        Ok(written) => written,
        Err(refusal) => return *refusal,
    };
    if *method == Method::PUT && written.name.is_none() {
        return field("name", "This field is required.");
    }
    if database_fails(&written) {
        return empty_405();
    }
    let mut groups = shared.lock();
    if groups.remove(&group.pk).is_none() {
        return no_such_group();
    }
    if let Some(name) = written.name {
        group.name = name;
    }
    if let Some(attributes) = written.attributes {
        // Replaced whole, not merged (observed).
        group.attributes = attributes;
    }
    match written.users {
        Some(users) => group.users = users,
        // PUT without users empties the group (observed).
        None if *method == Method::PUT => group.users.clear(),
        None => {}
    }
    if let Some(parents) = written.parents {
        group.parents = parents;
    }
    let shown = group.show(shared.release, true);
    let poisoned = group.is_poisoned();
    groups.insert(group);
    if poisoned {
        // Applied, and then the answer cannot be put into JSON (observed).
        return empty_405();
    }
    Json(shown).into_response()
}
