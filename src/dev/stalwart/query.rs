//! `/query`: which filters there are, what they find, and how results are cut into pages, with the
//! server's bugs in both.

use std::ops::Bound;

use serde_json::{Map, Value, json};

use super::domain::{is_known_property, words};
use super::error::CallError;
use super::id::Id;
use super::registry::{Object, Registry};

/// No answer has more ids (observed for the limit; the server calls it `queryMaxResults`).
const MAX_RESULTS: usize = 5000;

/// What the filters leave over: some ids, or all; and of those the names within bounds.
struct Matches {
    /// Ascending.
    ids: Option<Vec<Id>>,
    from: Bound<String>,
    to: Bound<String>,
}

impl Matches {
    fn restrict(&mut self, mut ids: Vec<Id>) {
        ids.sort_unstable();
        ids.dedup();
        if let Some(before) = &self.ids {
            ids.retain(|id| before.binary_search(id).is_ok());
        }
        self.ids = Some(ids);
    }

    fn has_bounds(&self) -> bool {
        self.from != Bound::Unbounded || self.to != Bound::Unbounded
    }

    fn within(&self, name: &str) -> bool {
        let after = match &self.from {
            Bound::Included(from) => name >= from.as_str(),
            Bound::Excluded(from) => name > from.as_str(),
            Bound::Unbounded => true,
        };
        after
            && match &self.to {
                Bound::Included(to) => name <= to.as_str(),
                Bound::Excluded(to) => name < to.as_str(),
                Bound::Unbounded => true,
            }
    }

    fn contains(&self, id: Id) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.binary_search(&id).is_ok())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Id,
    Name,
}

type Ids<'a> = Box<dyn DoubleEndedIterator<Item = Id> + 'a>;

pub fn query(
    registry: &Registry,
    object: Object,
    arguments: &Map<String, Value>,
) -> Result<Value, CallError> {
    let given = |name: &str| arguments.get(name).filter(|value| !value.is_null());
    let limit = match given("limit") {
        None => None,
        Some(value) => match value.as_u64() {
            Some(limit) => Some(usize::try_from(limit).unwrap_or(usize::MAX)),
            None => return Err(CallError::wrong_type(value, "usize")),
        },
    };
    let number = |name: &str| match given(name) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => Err(CallError::wrong_type(value, "i32")),
        },
    };
    let (position, anchor_offset) = (number("position")?, number("anchorOffset")?);
    let calculate_total = match given("calculateTotal") {
        None => false,
        Some(Value::Bool(calculate)) => *calculate,
        Some(other) => return Err(CallError::wrong_type(other, "a boolean")),
    };
    let anchor = match given("anchor") {
        None => None,
        Some(Value::String(anchor)) => {
            let text =
                "An anchor argument was supplied, but it cannot be found in the results of the query.";
            let parsed = anchor.parse::<Id>();
            Some(parsed.map_err(|_| CallError::new("anchorNotFound", text))?)
        }
        Some(other) => return Err(CallError::wrong_type(other, "a string")),
    };
    let matches = matches(registry, object, given("filter"))?;
    let (order, ascending) = read_sort(object, given("sort"))?;

    let mut answer = json!({ "queryState": "n", "canCalculateChanges": true, "position": 0 });
    // The bug: in the order of ids, pages are cut from the ascending ids and only then turned around,
    // unless something makes the server look at all of them. It also forgets to tell where it is.
    let hasty = order == Order::Id
        && !calculate_total
        && anchor_offset.is_none()
        && position.is_none_or(|position| position > 0);
    let ids = in_order(registry, object, &matches, order);
    if hasty {
        let skip = if anchor.is_some() { 0 } else { position.unwrap_or(0).try_into().unwrap_or(0) };
        let limit = limit.unwrap_or(MAX_RESULTS).clamp(1, MAX_RESULTS);
        let after = ids.skip_while(|id| anchor.is_some_and(|anchor| *id <= anchor));
        let mut page: Vec<String> = after.skip(skip).take(limit).map(|id| id.to_string()).collect();
        if !ascending {
            page.reverse();
        }
        answer["ids"] = json!(page);
        return Ok(answer);
    }

    let total = if matches.has_bounds() {
        in_order(registry, object, &matches, order).count()
    } else {
        matches.ids.as_ref().map_or_else(|| registry.len(object), Vec::len)
    };
    let mut ids: Ids<'_> = if ascending { ids } else { Box::new(ids.rev()) };
    let start = match anchor {
        Some(anchor) => {
            let text =
                "An anchor argument was supplied, but it cannot be found in the results of the query.";
            let index = in_direction(registry, object, &matches, order, ascending)
                .position(|id| id == anchor)
                .ok_or_else(|| CallError::new("anchorNotFound", text))?;
            i64::try_from(index).unwrap_or(i64::MAX).saturating_add(anchor_offset.unwrap_or(0))
        }
        None => match position.unwrap_or(0) {
            negative if negative < 0 => i64::try_from(total).unwrap_or(i64::MAX) + negative,
            position => position,
        },
    };
    let start = usize::try_from(start).unwrap_or(0);
    let limit = limit.unwrap_or(MAX_RESULTS).clamp(1, MAX_RESULTS);
    let page: Vec<String> = ids.by_ref().skip(start).take(limit).map(|id| id.to_string()).collect();
    answer["position"] = json!(start);
    answer["ids"] = json!(page);
    if calculate_total {
        answer["total"] = json!(total);
    }
    if total > limit {
        answer["limit"] = json!(limit);
    }
    Ok(answer)
}

fn in_direction<'a>(
    registry: &'a Registry,
    object: Object,
    matches: &'a Matches,
    order: Order,
    ascending: bool,
) -> Ids<'a> {
    let ids = in_order(registry, object, matches, order);
    if ascending { ids } else { Box::new(ids.rev()) }
}

/// The matches in ascending order. By name it walks the index, so that a page costs no sorting.
fn in_order<'a>(registry: &'a Registry, object: Object, matches: &'a Matches, order: Order) -> Ids<'a> {
    if object == Object::Domain && (order == Order::Name || matches.has_bounds()) {
        // Few are sorted, many are met on the way through the index.
        let few = matches.ids.as_ref().filter(|ids| ids.len() < 1000);
        let mut named: Vec<(&str, Id)> = Vec::new();
        if let Some(ids) = few {
            let names = ids.iter().filter_map(|id| Some((registry.domain_name(*id)?, *id)));
            named.extend(names.filter(|(name, _)| matches.within(name)));
            named.sort_unstable();
        } else {
            let from = (matches.from.clone(), Bound::Unbounded);
            let range = registry.domains_by_name().range::<String, _>(from);
            let found = range.filter(|(name, id)| matches.within(name) && matches.contains(**id));
            if order == Order::Name {
                return Box::new(found.map(|(_, id)| *id));
            }
            named.extend(found.map(|(name, id)| (name.as_str(), *id)));
        }
        let mut ids: Vec<Id> = named.into_iter().map(|(_, id)| id).collect();
        if order == Order::Id {
            ids.sort_unstable();
        }
        return Box::new(ids.into_iter());
    }
    let ids: Ids<'a> = match &matches.ids {
        Some(ids) => Box::new(ids.iter().copied()),
        None => registry.ids(object),
    };
    if order == Order::Id {
        return ids;
    }
    let mut named: Vec<_> =
        ids.filter_map(|id| Some((registry.mailbox(object, id)?.name.as_str(), id))).collect();
    named.sort_unstable();
    Box::new(named.into_iter().map(|(_, id)| id))
}

fn read_sort(object: Object, sort: Option<&Value>) -> Result<(Order, bool), CallError> {
    let Some(sort) = sort else { return Ok((Order::Id, false)) };
    let Value::Array(comparators) = sort else {
        return Err(CallError::wrong_type(sort, "a sequence"));
    };
    // Both orders are total: a second comparator never decides anything.
    let mut first = None;
    for comparator in comparators {
        let property = comparator.get("property").and_then(Value::as_str).unwrap_or_default();
        let order = match (property, object) {
            ("id", _) => Order::Id,
            ("name", Object::Domain | Object::Account) => Order::Name,
            _ => {
                let text = format!("Property {property} is not supported for sorting");
                return Err(CallError::new("unsupportedSort", text));
            }
        };
        let ascending = comparator.get("isAscending").and_then(Value::as_bool).unwrap_or(true);
        first.get_or_insert((order, ascending));
    }
    Ok(first.unwrap_or((Order::Id, false)))
}

fn matches(registry: &Registry, object: Object, filter: Option<&Value>) -> Result<Matches, CallError> {
    let mut matches = Matches { ids: None, from: Bound::Unbounded, to: Bound::Unbounded };
    if let Some(filter) = filter {
        restrict(registry, object, filter, &mut matches)?;
    }
    Ok(matches)
}

fn restrict(
    registry: &Registry,
    object: Object,
    filter: &Value,
    matches: &mut Matches,
) -> Result<(), CallError> {
    let Value::Object(members) = filter else {
        return Err(CallError::wrong_type(filter, "a map"));
    };
    if let Some(operator) = members.get("operator") {
        if operator != "AND" {
            return Err(CallError::new("unsupportedFilter", "Only AND is supported in filters"));
        }
        let conditions = members.get("conditions").and_then(Value::as_array);
        return conditions
            .into_iter()
            .flatten()
            .try_for_each(|condition| restrict(registry, object, condition, matches));
    }
    for (name, value) in members {
        condition(registry, object, name, value, matches)?;
    }
    Ok(())
}

fn condition(
    registry: &Registry,
    object: Object,
    name: &str,
    value: &Value,
    matches: &mut Matches,
) -> Result<(), CallError> {
    let unsupported = || {
        let text = if is_known_property(name) {
            format!("Filter on property {name} is not supported or invalid")
        } else {
            name.to_owned()
        };
        CallError::new("unsupportedFilter", text)
    };
    let text = value.as_str().ok_or_else(unsupported)?;
    let all_named =
        |wanted: &dyn Fn(Id) -> bool| registry.ids(object).filter(|id| wanted(*id)).collect();
    let found: Vec<Id> = match (object, name) {
        // Compared as it is: upper case finds nothing (observed).
        (Object::Domain, "name") => registry.domain_named(text).into_iter().collect(),
        (Object::Domain, "aliases") => registry.domain_with_alias(text).into_iter().collect(),
        (Object::Domain, "nameIsGreaterThan") => return bound(&mut matches.from, Bound::Excluded(text)),
        (Object::Domain, "nameIsGreaterThanOrEqual") => {
            return bound(&mut matches.from, Bound::Included(text));
        }
        (Object::Domain, "nameIsLessThan") => return bound(&mut matches.to, Bound::Excluded(text)),
        (Object::Domain, "nameIsLessThanOrEqual") => {
            return bound(&mut matches.to, Bound::Included(text));
        }
        (Object::Domain, "text") => domains_with_words(registry, text),
        (Object::Account | Object::MailingList, "text") => mailboxes_with_words(registry, object, text),
        // There are no tenants.
        (Object::Domain | Object::Account | Object::MailingList, "memberTenantId") => Vec::new(),
        (Object::Account | Object::DkimSignature, "domainId") => {
            let domain = text.parse().map_err(|_| unsupported())?;
            let linked = registry.linked(domain).filter(|(linked, _)| *linked == object);
            linked.map(|(_, id)| id).collect()
        }
        (Object::Account, "name") => {
            all_named(&|id| registry.mailbox(object, id).is_some_and(|mailbox| mailbox.name == text))
        }
        (Object::Account, "@type") => all_named(&|id| {
            registry.mailbox(object, id).is_some_and(|mailbox| format!("{:?}", mailbox.kind) == text)
        }),
        _ => return Err(unsupported()),
    };
    matches.restrict(found);
    Ok(())
}

fn bound(place: &mut Bound<String>, bound: Bound<&str>) -> Result<(), CallError> {
    *place = bound.map(str::to_owned);
    Ok(())
}

/// Every word must be there, except that words before the first known one are passed over (observed:
/// "nosuchword txa" finds txa, "txa nosuchword" finds nothing).
fn domains_with_words(registry: &Registry, text: &str) -> Vec<Id> {
    let mut sets = Vec::new();
    for word in words(text) {
        match registry.domains_with_word(&word) {
            Some(ids) => sets.push(ids),
            None if sets.is_empty() => {}
            None => return Vec::new(),
        }
    }
    let Some(smallest) = sets.iter().min_by_key(|ids| ids.len()) else { return Vec::new() };
    smallest.iter().filter(|id| sets.iter().all(|ids| ids.contains(id))).copied().collect()
}

fn mailboxes_with_words(registry: &Registry, object: Object, text: &str) -> Vec<Id> {
    let mut found: Option<Vec<Id>> = None;
    for word in words(text) {
        let has = |id: &Id| {
            registry
                .mailbox(object, *id)
                .is_some_and(|mailbox| mailbox.words().any(|other| other == word))
        };
        let ids: Vec<Id> = registry.ids(object).filter(has).collect();
        found = match found {
            None if ids.is_empty() => None,
            None => Some(ids),
            Some(before) => Some(before.into_iter().filter(|id| ids.contains(id)).collect()),
        };
    }
    found.unwrap_or_default()
}
