//! One JMAP request: its calls in order, their references to each other, and what comes of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::access::{GRANTS_ROLE_USER, Key, OBJECTS, Permissions, permissions};
use super::error::{CallError, SetError, forbidden, invalid_patch, invalid_value, not_found, required};
use super::id::Id;
use super::query::query;
use super::registry::Object;
use super::{Release, State};

/// The account that every credential belongs to. Management objects are global, it changes nothing.
pub const ACCOUNT: &str = "b";
pub const SESSION_STATE: &str = "3f46f993";
pub const MAX_CALLS: usize = 16;
/// Of `/get` and of `/set` alike.
const MAX_OBJECTS: usize = 500;
const MAX_API_KEYS: usize = 5;

pub const CAPABILITIES: [&str; 18] = [
    "urn:ietf:params:jmap:core",
    "urn:ietf:params:jmap:mail",
    "urn:ietf:params:jmap:calendars",
    "urn:ietf:params:jmap:calendars:parse",
    "urn:ietf:params:jmap:contacts",
    "urn:ietf:params:jmap:contacts:parse",
    "urn:ietf:params:jmap:filenode",
    "urn:ietf:params:jmap:principals",
    "urn:ietf:params:jmap:principals:availability",
    "urn:ietf:params:jmap:submission",
    "urn:ietf:params:jmap:vacationresponse",
    "urn:ietf:params:jmap:sieve",
    "urn:ietf:params:jmap:blob",
    "urn:ietf:params:jmap:quota",
    "urn:ietf:params:jmap:emailpush",
    "urn:ietf:params:jmap:webpush-vapid",
    "urn:ietf:params:jmap:websocket",
    "urn:ietf:params:jmap:mail:share",
];
/// In use it is taken, but no session lists it at the top (observed).
pub const MANAGEMENT: &str = "urn:stalwart:jmap";

pub struct Request {
    calls: Vec<Call>,
    created_ids: Option<BTreeMap<String, String>>,
}

struct Call {
    method: String,
    arguments: Map<String, Value>,
    id: String,
}

impl Request {
    /// `None` for whatever makes the server refuse the request as a whole; that is more than bad JSON:
    /// also `accountId: null`, and with 0.16.18 a malformed `ifInState` (observed; of a malformed
    /// `accountId` inferred).
    pub fn parse(body: &[u8], release: Release) -> Option<Self> {
        let request: Value = serde_json::from_slice(body).ok()?;
        let using = request.get("using")?.as_array()?;
        let known = |name: &str| name == MANAGEMENT || CAPABILITIES.contains(&name);
        if !using.iter().all(|name| name.as_str().is_some_and(known)) {
            return None;
        }
        let calls = request.get("methodCalls")?.as_array()?;
        let calls = calls.iter().map(|call| Call::parse(call, release));
        let calls = calls.collect::<Option<Vec<_>>>()?;
        let created_ids = match request.get("createdIds") {
            None | Some(Value::Null) => None,
            Some(ids) => Some(serde_json::from_value(ids.clone()).ok()?),
        };
        Some(Self { calls, created_ids })
    }

    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    pub fn answer(self, state: &mut State, permissions: &Permissions) -> Value {
        let echo = self.created_ids.is_some();
        let mut context = Context {
            state,
            permissions,
            answers: Vec::new(),
            created_ids: self.created_ids.unwrap_or_default(),
            account: ACCOUNT.to_owned(),
        };
        for call in self.calls {
            let outcome = context.run(&call.method, call.arguments);
            context.answers.push(match outcome {
                Ok(answer) => (call.method, answer, call.id),
                Err(error) => ("error".to_owned(), error.show(), call.id),
            });
        }
        let mut answer = json!({ "methodResponses": context.answers, "sessionState": SESSION_STATE });
        if echo {
            answer["createdIds"] = json!(context.created_ids);
        }
        answer
    }
}

impl Call {
    fn parse(call: &Value, release: Release) -> Option<Self> {
        let [Value::String(method), Value::Object(arguments), Value::String(id)] =
            call.as_array()?.as_slice()
        else {
            return None;
        };
        if method.starts_with("x:") {
            match arguments.get("accountId") {
                None => {}
                Some(Value::String(id)) if id.parse::<Id>().is_ok() => {}
                Some(_) => return None,
            }
        }
        if release == Release::R0_16_18 && method.ends_with("/set") && !has_a_state(arguments) {
            return None;
        }
        Some(Self { method: method.clone(), arguments: arguments.clone(), id: id.clone() })
    }
}

fn has_a_state(arguments: &Map<String, Value>) -> bool {
    match arguments.get("ifInState") {
        None | Some(Value::Null) => true,
        Some(Value::String(state)) => is_state(state),
        Some(_) => false,
    }
}

/// Well-formed states are "n" and "s" with hexadecimal digits; they are not looked at further (observed).
fn is_state(text: &str) -> bool {
    text == "n"
        || text
            .strip_prefix('s')
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

struct Context<'a> {
    state: &'a mut State,
    permissions: &'a Permissions,
    answers: Vec<(String, Value, String)>,
    /// Creation ids to ids, across the calls.
    created_ids: BTreeMap<String, String>,
    /// Whose objects the call is about.
    account: String,
}

impl Context<'_> {
    fn run(&mut self, method: &str, mut arguments: Map<String, Value>) -> Result<Value, CallError> {
        let unknown = || CallError::new("unknownMethod", method);
        if method == "Core/echo" {
            self.demand("jmapCoreEcho")?;
            return Ok(Value::Object(arguments));
        }
        let (name, verb) =
            method.strip_prefix("x:").and_then(|method| method.split_once('/')).ok_or_else(unknown)?;
        if !OBJECTS.contains(&name) || !matches!(verb, "get" | "query" | "set") {
            return Err(unknown());
        }
        if self.state.bootstrap {
            let what = if verb == "set" { "modified" } else { "accessed" };
            let text = format!(
                "The server is in bootstrap mode. Only the 'Bootstrap' object type can be {what} until \
                 the bootstrap process is complete."
            );
            return Err(CallError::new("forbidden", text));
        }
        self.authorize(name, verb)?;
        if verb == "set" && !has_a_state(&arguments) {
            let text = "invalid JMAP State at line 1 column 117";
            return Err(CallError::new("invalidArguments", text));
        }
        self.account = match arguments.get("accountId").and_then(Value::as_str) {
            None => ACCOUNT.to_owned(),
            Some(id) if id == ACCOUNT || self.permissions.have("impersonate") => id.to_owned(),
            Some(id) => {
                return Err(CallError::new(
                    "forbidden",
                    format!("You are not an owner of account {id}"),
                ));
            }
        };
        self.resolve(&mut arguments)?;
        self.state.registry.settle();
        let object = Object::ALL.into_iter().find(|object| object.name() == name);
        let mut answer = match (object, verb) {
            (Some(object), "get") => self.get(object, &arguments)?,
            (Some(object), "query") => query(&self.state.registry, object, &arguments)?,
            (Some(object), _) => self.set(Target::Object(object), &arguments)?,
            (None, "set") if name == "ApiKey" => self.set(Target::ApiKey, &arguments)?,
            (None, "get") if name == "SystemSettings" => self.settings(),
            (None, "set") if name == "BlockedIp" => self.set(Target::BlockedIp, &arguments)?,
            (None, "set") if name == "Action" => self.set(Target::Action, &arguments)?,
            (None, "get") if name == "BlockedIp" => {
                json!({ "list": self.state.bans.show(), "notFound": [] })
            }
            // Real, but not simulated.
            (None, _) => return Err(unknown()),
        };
        answer["accountId"] = json!(self.account);
        Ok(answer)
    }

    fn demand(&self, permission: &str) -> Result<(), CallError> {
        if self.permissions.have(permission) {
            return Ok(());
        }
        Err(CallError::new("forbidden", "You are not authorized to perform this action"))
    }

    fn authorize(&self, object: &str, verb: &str) -> Result<(), CallError> {
        match verb {
            "get" => self.demand(&format!("sys{object}Get")),
            "query" => self.demand(&format!("sys{object}Query")),
            _ if ["Create", "Update", "Destroy"]
                .iter()
                .any(|verb| self.permissions.have(&format!("sys{object}{verb}"))) =>
            {
                Ok(())
            }
            _ => {
                let text = "You are not authorized to create, update or destroy objects of this type";
                Err(CallError::new("forbidden", text))
            }
        }
    }

    /// Puts earlier results in the place of references to them: `"#ids": {resultOf, name, path}`.
    fn resolve(&self, arguments: &mut Map<String, Value>) -> Result<(), CallError> {
        for name in ["ids", "properties", "destroy"] {
            let Some(reference) = arguments.remove(&format!("#{name}")) else { continue };
            let part = |part: &str| reference[part].as_str().unwrap_or_default();
            let (of, method, path) = (part("resultOf"), part("name"), part("path"));
            let answer = self.answers.iter().find(|(answered, _, id)| answered == method && id == of);
            let found = answer.and_then(|(_, answer, _)| follow(answer, path));
            let found = found.ok_or_else(|| {
                let text = format!("Result reference to {of}#{method} not found.");
                CallError::new("invalidResultReference", text)
            })?;
            arguments.insert(name.to_owned(), found);
        }
        Ok(())
    }

    fn get(&self, object: Object, arguments: &Map<String, Value>) -> Result<Value, CallError> {
        let properties = strings(arguments, "properties")?;
        let wanted =
            |name: &str| properties.as_ref().is_none_or(|names| names.iter().any(|it| it == name));
        let registry = &self.state.registry;
        let (mut list, mut missing) = (Vec::new(), Vec::new());
        match strings(arguments, "ids")? {
            // Everything means the first 500, and nothing tells that there are more (observed).
            None => {
                let ids = registry.ids(object).take(MAX_OBJECTS);
                list.extend(ids.filter_map(|id| registry.show(object, id, wanted)));
            }
            Some(ids) if ids.len() > MAX_OBJECTS => return Err(CallError::too_large()),
            Some(ids) => {
                for id in ids {
                    let id = match id.strip_prefix('#') {
                        Some(name) => self.created(name, "ids")?.to_owned(),
                        None => id,
                    };
                    let shown = id.parse().ok().and_then(|id| registry.show(object, id, wanted));
                    match shown {
                        Some(shown) => list.push(shown),
                        None => missing.push(id),
                    }
                }
            }
        }
        if self.state.release == Release::R0_16_19 {
            // In an order of its own (observed).
            missing.reverse();
        }
        Ok(json!({ "list": list, "notFound": missing }))
    }

    /// The one object that there is of these; of its properties those that concern domains.
    fn settings(&self) -> Value {
        let default = self.state.registry.default_domain().map(|id| id.to_string());
        json!({ "list": [{ "id": "singleton", "defaultDomainId": default }], "notFound": [] })
    }

    fn created(&self, name: &str, from: &str) -> Result<&str, CallError> {
        self.created_ids.get(name).map(String::as_str).ok_or_else(|| CallError::dangling(name, from))
    }

    fn set(&mut self, target: Target, arguments: &Map<String, Value>) -> Result<Value, CallError> {
        let mut creates = objects(arguments, "create")?;
        let mut updates = objects(arguments, "update")?;
        let destroys = strings(arguments, "destroy")?.unwrap_or_default();
        if creates.len() + updates.len() + destroys.len() > MAX_OBJECTS {
            return Err(CallError::too_large());
        }
        for (from, properties) in creates.iter_mut().chain(&mut updates) {
            let name = match properties.get("domainId") {
                Some(Value::String(id)) => id.strip_prefix('#').map(str::to_owned),
                _ => None,
            };
            if let Some(name) = name {
                let id = self.created(&name, from)?.to_owned();
                properties.insert("domainId".into(), json!(id));
            }
        }
        let mut race = match target {
            Target::Object(Object::Domain) => self.state.race.take(),
            _ => None,
        };
        // Each object is committed for itself: a race that is lost at one leaves those before it done.
        let mut lost = move || match &mut race {
            Some(0) => Err(CallError::unavailable()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        };

        let mut done = Done::default();
        for (name, properties) in creates {
            lost()?;
            match self.create(target, &properties) {
                Ok(created) => {
                    if let Some(id) = created["id"].as_str() {
                        self.created_ids.insert(name.clone(), id.to_owned());
                    }
                    done.put("created", name, created);
                }
                Err(refused) => done.put("notCreated", name, refused),
            }
        }
        for (id, patch) in updates {
            // What is no id, and "#name" is none, is dropped without a word (observed).
            let Ok(parsed) = id.parse::<Id>() else { continue };
            lost()?;
            match self.update(target, parsed, &patch) {
                Ok(()) => done.put("updated", id, Value::Null),
                Err(refused) => done.put("notUpdated", id, refused),
            }
        }
        let mut destroyed = Vec::new();
        for id in destroys {
            let Ok(parsed) = id.parse::<Id>() else { continue };
            lost()?;
            match self.destroy(target, parsed) {
                Ok(()) => destroyed.push(id),
                Err(refused) => done.put("notDestroyed", id, refused),
            }
        }
        if !destroyed.is_empty() {
            done.0.insert("destroyed".into(), json!(destroyed));
        }
        // Lost at the very end: all of it is done.
        lost().map(|()| Value::Object(done.0))
    }

    /// May this be done to single objects? A key that may do only some of it was not observed; it is
    /// refused object by object.
    fn may(&self, target: Target, verb: &str) -> Result<(), SetError> {
        let permission = format!("sys{}{verb}", target.name());
        if self.permissions.have(&permission) {
            return Ok(());
        }
        Err(forbidden("You are not authorized to perform this action"))
    }

    fn create(&mut self, target: Target, properties: &Map<String, Value>) -> Result<Value, SetError> {
        self.may(target, "Create")?;
        match target {
            Target::Object(object) => {
                let may_grant = self.permissions.have(GRANTS_ROLE_USER);
                let id = self.state.registry.create(object, properties, may_grant)?;
                Ok(json!({ "id": id.to_string() }))
            }
            Target::ApiKey => self.create_key(properties),
            Target::Action if properties.get("@type") == Some(&json!("ReloadBlockedIps")) => {
                self.state.bans.reload();
                Ok(json!({ "id": "bvqjoak" }))
            }
            // Not simulated: bans come by themselves, and of the actions only this one.
            Target::BlockedIp | Target::Action => Err(not_found()),
        }
    }

    fn update(&mut self, target: Target, id: Id, patch: &Map<String, Value>) -> Result<(), SetError> {
        self.may(target, "Update")?;
        match target {
            Target::Object(object) => self.state.registry.update(object, id, patch),
            // Not simulated: they are made and destroyed.
            Target::ApiKey | Target::BlockedIp | Target::Action => Err(not_found()),
        }
    }

    fn destroy(&mut self, target: Target, id: Id) -> Result<(), SetError> {
        self.may(target, "Destroy")?;
        match target {
            Target::Object(object) => self.state.registry.destroy(object, id),
            Target::ApiKey => {
                let access = &mut self.state.access;
                let key = access.key_ids.remove(&id.0).ok_or_else(not_found)?;
                access.keys.remove(&key);
                Ok(())
            }
            Target::BlockedIp if self.state.bans.destroy(id.0) => Ok(()),
            Target::BlockedIp | Target::Action => Err(not_found()),
        }
    }

    /// What a key of the account that is asked about may do at most.
    fn permissions_of_the_account(&self) -> Result<Permissions, SetError> {
        if self.account == ACCOUNT {
            return Ok(Permissions::All);
        }
        let id = self.account.parse().map_err(|_| not_found())?;
        let account = self.state.registry.mailbox(Object::Account, id).ok_or_else(not_found)?;
        Ok(account.replaced_permissions().map_or(Permissions::All, Permissions::only))
    }

    fn create_key(&mut self, properties: &Map<String, Value>) -> Result<Value, SetError> {
        let mut expires = None;
        let owned = self.permissions_of_the_account()?;
        let mut granted = owned.clone();
        for (name, value) in properties {
            match name.as_str() {
                "description" if value.as_str().is_some_and(|text| !text.is_empty()) => {}
                "description" => return Err(invalid_value(name)),
                "expiresAt" => {
                    let time = value.as_str().map(str::parse::<Timestamp>).transpose();
                    expires = time.map_err(|_| invalid_value(name))?;
                }
                "permissions" => granted = read_permissions(value)?.unwrap_or_else(|| owned.clone()),
                // Addresses are not looked at.
                "allowedIps" if value.is_object() => {}
                "secret" | "createdAt" => {
                    return Err(invalid_patch("Cannot modify server set property", name));
                }
                _ => return Err(super::domain::unknown_property(name, true)),
            }
        }
        if !properties.contains_key("description") {
            return Err(required("description"));
        }
        let access = &mut self.state.access;
        if access.key_ids.len() >= MAX_API_KEYS {
            let text = format!("You have exceeded your quota of {MAX_API_KEYS} API keys.");
            return Err(json!({ "type": "overQuota", "description": text }));
        }
        let free = (1..).find(|id| !access.key_ids.contains_key(id)).unwrap_or_default();
        let secret = format!("API_{:032x}", rand::random::<u128>());
        access.key_ids.insert(free, secret.clone());
        access.keys.insert(secret.clone(), Key { permissions: granted, expires });
        // The only time that the secret is told.
        Ok(json!({ "id": Id(free).to_string(), "secret": secret }))
    }
}

/// What a `/set` is about.
#[derive(Clone, Copy)]
enum Target {
    Object(Object),
    ApiKey,
    BlockedIp,
    Action,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Object(object) => object.name(),
            Self::ApiKey => "ApiKey",
            Self::BlockedIp => "BlockedIp",
            Self::Action => "Action",
        }
    }
}

/// The answer of a `/set`; members without entries are left out (observed).
#[derive(Default)]
struct Done(Map<String, Value>);

impl Done {
    fn put(&mut self, member: &str, name: String, value: Value) {
        let entries = self.0.entry(member).or_insert_with(|| json!({}));
        entries[name] = value;
    }
}

/// `None`: those of the account.
fn read_permissions(value: &Value) -> Result<Option<Permissions>, SetError> {
    let kind = value["@type"].as_str().unwrap_or_default();
    match (kind, &value["permissions"]) {
        ("Inherit", _) => Ok(None),
        ("Replace", Value::Object(names)) => {
            let known: Vec<String> = permissions().collect();
            if names.keys().all(|name| known.contains(name)) {
                return Ok(Some(Permissions::only(names.keys().map(String::as_str))));
            }
            Err(invalid_patch("Invalid key for object property", "permissions/permissions"))
        }
        _ => Err(invalid_patch("Missing or invalid '@type' property in object", "permissions")),
    }
}

/// The values at a path; `*` goes through a list.
fn follow(answer: &Value, path: &str) -> Option<Value> {
    let mut found = vec![answer];
    let mut many = false;
    for part in path.strip_prefix('/')?.split('/') {
        found = if part == "*" {
            many = true;
            found.into_iter().filter_map(Value::as_array).flatten().collect()
        } else {
            found.into_iter().filter_map(|value| value.get(part)).collect()
        };
    }
    if many {
        return Some(found.into_iter().filter(|value| value.is_string()).cloned().collect());
    }
    found.into_iter().next().filter(|value| value.is_array()).cloned()
}

fn strings(arguments: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, CallError> {
    let values = match arguments.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(CallError::wrong_type(other, "a sequence")),
    };
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(CallError::wrong_type(other, "a string")),
    };
    values.iter().map(text).collect::<Result<_, _>>().map(Some)
}

type Objects = Vec<(String, Map<String, Value>)>;

fn objects(arguments: &Map<String, Value>, name: &str) -> Result<Objects, CallError> {
    let values = match arguments.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(values)) => values,
        Some(other) => return Err(CallError::wrong_type(other, "a map")),
    };
    let object = |(name, value): (&String, &Value)| match value {
        Value::Object(properties) => Ok((name.clone(), properties.clone())),
        other => Err(CallError::wrong_type(other, "a map")),
    };
    values.iter().map(object).collect()
}
