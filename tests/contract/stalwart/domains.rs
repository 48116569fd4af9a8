//! `x:Domain`: names, properties, filters.

use serde_json::{Value, json};

use super::{ids, on_each, text};
use crate::support::unique;

#[tokio::test]
async fn a_domain_needs_only_a_name_and_only_its_id_comes_back() {
    on_each(async |server| {
        let name = server.name("minimal");
        let answer = server.create(json!({ "name": name.to_uppercase() })).await;
        assert_eq!(answer["created"]["d"].as_object().unwrap().keys().collect::<Vec<_>>(), ["id"]);
        assert_eq!(answer.get("notCreated"), None);
        let domain = server.show(&text(&answer["created"]["d"]["id"])).await;
        for (property, value) in [
            ("name", json!(name)),
            ("description", Value::Null),
            ("aliases", json!({})),
            ("isEnabled", json!(true)),
            ("memberTenantId", Value::Null),
            ("catchAllAddress", Value::Null),
            ("reportAddressUri", json!("mailto:postmaster")),
        ] {
            assert_eq!(domain[property], value, "{property}");
        }
        assert_eq!(domain["dkimManagement"]["@type"], "Automatic");
        assert!(text(&domain["dnsZoneFile"]).contains(&name));
    })
    .await;
}

#[tokio::test]
async fn get_shows_what_is_asked_for_and_the_id_and_ignores_unknown_properties() {
    on_each(async |server| {
        let name = server.name("chosen");
        let id = server.made(&name, None).await;
        let properties = json!({ "ids": [id], "properties": ["name", "nosuch"] });
        let answer = server.ok("x:Domain/get", properties).await;
        assert_eq!(answer["list"], json!([{ "id": id, "name": name }]));
    })
    .await;
}

#[tokio::test]
async fn a_domain_name_is_unique_and_the_refusal_names_the_holder() {
    on_each(async |server| {
        let (name, alias) = (server.name("unique"), server.name("alias"));
        let id = server.made(&name, None).await;
        let updated = server.update(&id, json!({ "aliases": { alias.clone(): true } })).await;
        assert_eq!(updated["updated"], json!({ id.clone(): null }));
        let violation = |property: &str| {
            let holder = json!({ "object": "Domain", "id": id });
            json!({ "type": "primaryKeyViolation", "properties": [property], "objectId": holder })
        };
        for taken in [&name, &name.to_uppercase(), &alias] {
            assert_eq!(server.refusal(json!({ "name": taken })).await, violation("name"), "{taken}");
        }
        let other = server.name("other");
        let with_alias = json!({ "name": other, "aliases": { name.clone(): true } });
        assert_eq!(server.refusal(with_alias).await, violation("aliases"));
        // A rename is no way around.
        let other_id = server.made(&other, None).await;
        let answer = server.update(&other_id, json!({ "name": name })).await;
        assert_eq!(answer["notUpdated"][&other_id], violation("name"));
    })
    .await;
}

#[tokio::test]
async fn twins_in_one_set_leave_one_domain_that_the_other_names() {
    on_each(async |server| {
        let name = server.name("twin");
        let twin = json!({ "name": name, "dkimManagement": { "@type": "Manual" } });
        let arguments = json!({ "create": { "a": twin, "b": twin } });
        let answer = server.ok("x:Domain/set", arguments).await;
        let made = answer["created"].as_object().unwrap();
        let refused = answer["notCreated"].as_object().unwrap();
        assert_eq!((made.len(), refused.len()), (1, 1));
        let (made, refused) = (made.values().next().unwrap(), refused.values().next().unwrap());
        assert_eq!(refused["objectId"]["id"], made["id"]);
    })
    .await;
}

#[tokio::test]
async fn reserved_names_and_names_without_a_known_suffix_are_refused() {
    on_each(async |server| {
        let label = unique("refused");
        for name in [
            "nodot".to_owned(),
            format!("{label}.example"),
            format!("{label}.invalid"),
            format!("{label}.nosuchtld"),
            format!("{label}.test."),
            format!("{label}..test"),
            format!("*.{label}.test"),
            format!("{label}\".test"),
            "1.2.3.4".to_owned(),
        ] {
            let expected = json!({
                "type": "invalidPatch", "description": "Invalid domain name", "properties": ["name"],
            });
            assert_eq!(server.refusal(json!({ "name": name })).await, expected, "{name}");
        }
        // Nor is it said which of the reasons it is. A public suffix itself would be taken.
        let empty = server.refusal(json!({ "name": "" })).await;
        assert_eq!(empty["description"], "Invalid value for property.");
    })
    .await;
}

#[tokio::test]
async fn odd_labels_are_taken_and_names_are_kept_in_another_form() {
    on_each(async |server| {
        let label = unique("odd");
        for (sent, kept) in [
            (format!("-{label}-.test"), format!("-{label}-.test")),
            (format!("a@{label}.test"), format!("a@{label}.test")),
            (format!("under_{label}.test"), format!("under_{label}.test")),
            (format!("has space{label}.test"), format!("hasspace{label}.test")),
            (format!("Upper{label}.Test"), format!("upper{label}.test")),
            (format!("bücher.{label}.test"), format!("xn--bcher-kva.{label}.test")),
        ] {
            server.made.lock().unwrap().push(kept.clone());
            let id = server.made(&sent, None).await;
            assert_eq!(server.show(&id).await["name"], kept);
        }
    })
    .await;
}

#[tokio::test]
async fn wrong_properties_are_refused_each_in_its_way() {
    on_each(async |server| {
        let name = format!("{}.test", unique("wrong"));
        let invalid = |description: &str, property: &str| {
            json!({ "type": "invalidPatch", "description": description, "properties": [property] })
        };
        for (properties, expected) in [
            (json!({ "labels": { "owner": "x" } }), invalid("Invalid key for object", "")),
            (json!({ "id": "zz" }), invalid("Invalid property", "id")),
            (json!({ "description": "" }), invalid("Invalid value for property.", "description")),
            (json!({ "aliases": ["x.test"] }), invalid("Invalid value for object property", "aliases")),
            (
                json!({ "createdAt": "2020-01-01T00:00:00Z" }),
                invalid("Cannot modify server set property", "createdAt"),
            ),
            (
                json!({ "isEnabled": "yes" }),
                invalid("Invalid value for boolean property (expected true or false)", "isEnabled"),
            ),
            (
                json!({ "memberTenantId": "zzzzzzzz" }),
                json!({
                    "type": "invalidForeignKey", "objectId": { "object": "Tenant", "id": "zzzzzzzz" },
                }),
            ),
        ] {
            let mut domain = properties.clone();
            domain["name"] = json!(name);
            assert_eq!(server.refusal(domain).await, expected, "{properties}");
        }
        let missing = server.refusal(json!({ "description": "no name" })).await;
        let errors = json!([{ "type": "Required", "property": "name" }]);
        assert_eq!(missing, json!({ "type": "validationFailed", "validationErrors": errors }));
    })
    .await;
}

#[tokio::test]
async fn a_description_is_kept_to_the_letter_however_long() {
    on_each(async |server| {
        let name = server.name("described");
        let id = server.made(&name, None).await;
        for description in [
            " tenant=ABC; \"quoted\"\tund ünïcode \u{1f300} ".to_owned(),
            format!("begin {}", "x".repeat(50_000)),
        ] {
            let answer = server.update(&id, json!({ "description": description })).await;
            assert_eq!(answer["updated"], json!({ id.clone(): null }));
            assert_eq!(server.show(&id).await["description"], description);
        }
        server.update(&id, json!({ "description": null })).await;
        assert_eq!(server.show(&id).await["description"], Value::Null);
    })
    .await;
}

#[tokio::test]
async fn an_update_answers_null_even_when_it_changes_nothing() {
    on_each(async |server| {
        let (name, renamed, alias) = (server.name("old"), server.name("new"), server.name("alias"));
        let id = server.made(&name, Some("before")).await;
        for patch in [
            json!({ "description": "after" }),
            json!({ "description": "after" }),
            json!({ format!("aliases/{alias}"): true }),
            json!({ "name": renamed }),
            json!({ "isEnabled": false }),
        ] {
            let answer = server.update(&id, patch).await;
            assert_eq!(answer["updated"], json!({ id.clone(): null }), "{answer}");
            assert_eq!(answer.get("notUpdated"), None);
        }
        let domain = server.show(&id).await;
        assert_eq!(domain["aliases"], json!({ alias.clone(): true }));
        assert_eq!((&domain["name"], &domain["isEnabled"]), (&json!(renamed), &json!(false)));
        assert!(server.find(json!({ "name": name })).await.is_empty());
        server.update(&id, json!({ format!("aliases/{alias}"): null })).await;
        assert_eq!(server.show(&id).await["aliases"], json!({}));

        for (patch, description, property) in [
            (json!({ "name": "bad name" }), "Invalid domain name", "name"),
            (json!({ "labels": {} }), "Invalid property", "labels"),
        ] {
            let answer = server.update(&id, patch).await;
            let expected = json!({
                "type": "invalidPatch", "description": description, "properties": [property],
            });
            assert_eq!(answer["notUpdated"][&id], expected);
        }
    })
    .await;
}

#[tokio::test]
async fn the_name_filter_is_exact_and_not_normalized() {
    on_each(async |server| {
        let (name, alias) = (server.name("exact"), server.name("alias"));
        let id = server.made(&name, None).await;
        server.update(&id, json!({ "aliases": { alias.clone(): true } })).await;
        assert_eq!(server.find(json!({ "name": name })).await, std::slice::from_ref(&id));
        for other in [name.to_uppercase(), name[..name.len() - 1].to_owned(), alias.clone()] {
            assert!(server.find(json!({ "name": other })).await.is_empty(), "{other}");
        }
        assert_eq!(server.find(json!({ "aliases": alias })).await, [id]);
    })
    .await;
}

#[tokio::test]
async fn text_finds_whole_words_of_name_and_description() {
    on_each(async |server| {
        let word = unique("w").replace('-', "");
        let (name, other) = (server.name("worded"), server.name("worded"));
        let id = server.made(&name, Some(&format!("tenant={word} first/second"))).await;
        server.made(&other, Some("tenant=other")).await;
        assert_eq!(server.find(json!({ "text": word })).await, std::slice::from_ref(&id));
        assert_eq!(
            server.find(json!({ "text": format!("second {word}") })).await,
            std::slice::from_ref(&id)
        );
        assert_eq!(server.find(json!({ "text": name })).await, std::slice::from_ref(&id));
        assert!(server.find(json!({ "text": word[..word.len() - 1] })).await.is_empty());
        assert!(server.find(json!({ "text": "" })).await.is_empty());
        let both = json!({ "name": name, "text": word });
        assert_eq!(server.find(both).await, std::slice::from_ref(&id));
        assert!(server.find(json!({ "name": other, "text": word })).await.is_empty());
        let and = json!({ "operator": "AND", "conditions": [{ "name": name }, { "text": word }] });
        assert_eq!(server.find(and).await, std::slice::from_ref(&id));
        // It follows the description.
        server.update(&id, json!({ "description": "gone" })).await;
        assert!(server.find(json!({ "text": word })).await.is_empty());
    })
    .await;
}

/// Why a mark must be one unbroken word, and be looked at after it was found.
#[tokio::test]
async fn leading_unknown_words_of_a_text_filter_are_ignored() {
    on_each(async |server| {
        let word = unique("w").replace('-', "");
        let unknown = unique("u").replace('-', "");
        let id = server.made(&server.name("leading"), Some(&word)).await;
        assert_eq!(server.find(json!({ "text": format!("{unknown} {word}") })).await, [id]);
        assert!(server.find(json!({ "text": format!("{word} {unknown}") })).await.is_empty());
        assert!(server.find(json!({ "text": unknown })).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn most_properties_cannot_be_filtered_or_sorted_by() {
    on_each(async |server| {
        for (filter, description) in [
            (
                json!({ "description": "x" }),
                "Filter on property description is not supported or invalid",
            ),
            (json!({ "isEnabled": true }), "Filter on property isEnabled is not supported or invalid"),
            (json!({ "nosuch": 1 }), "nosuch"),
            (
                json!({ "operator": "OR", "conditions": [{ "name": "a.test" }] }),
                "Only AND is supported in filters",
            ),
        ] {
            let error = server.call("x:Domain/query", json!({ "filter": filter })).await.unwrap_err();
            assert_eq!(error, json!({ "type": "unsupportedFilter", "description": description }));
        }
        let sort = json!({ "sort": [{ "property": "description" }] });
        let error = server.call("x:Domain/query", sort).await.unwrap_err();
        let description = "Property description is not supported for sorting";
        assert_eq!(error, json!({ "type": "unsupportedSort", "description": description }));
    })
    .await;
}

#[tokio::test]
async fn names_can_be_bounded_by_a_filter() {
    on_each(async |server| {
        let word = unique("w").replace('-', "");
        let mut made = Vec::new();
        for index in 0..3 {
            let name = server.name(&format!("bounded{index}"));
            let id = server.made(&name, Some(&word)).await;
            made.push((name, id));
        }
        let filter = json!({ "text": word, "nameIsGreaterThan": made[0].0 });
        let sort = json!([{ "property": "name", "isAscending": true }]);
        let arguments = json!({ "filter": filter, "sort": sort });
        let found = ids(&server.ok("x:Domain/query", arguments).await);
        assert_eq!(found, [made[1].1.clone(), made[2].1.clone()]);
    })
    .await;
}
