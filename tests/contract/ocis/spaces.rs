//! Spaces: made, changed, found, disabled, purged.

use super::*;

#[tokio::test]
async fn nothing_is_unique_and_a_chosen_id_is_ignored() {
    on_each(async |server| {
        let name = unique("twin");
        let body = json!({ "name": name, "description": name, "driveAlias": name, "id": "chosen" });
        let first = server.create(body.clone()).await;
        let second = server.create(body).await;
        assert_ne!(first["id"], second["id"]);
        assert_ne!(first["id"], "chosen");
        for field in ["name", "description", "driveAlias"] {
            assert_eq!(first[field], name);
            assert_eq!(second[field], name);
        }
        let twins = server.list(PROJECTS).await.into_iter().filter(|drive| drive["name"] == name);
        assert_eq!(twins.count(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_new_space_has_its_maker_for_manager_and_itself_for_owner() {
    on_each(async |server| {
        let made = server.create(json!({ "name": unique("A Space"), "quota": { "total": 5000 } })).await;
        let id = text(&made, "/id");
        let me = server.get("/graph/v1.0/me").await.must_be(200).json();
        let (storage, space) = id.split_once('$').unwrap();
        assert_eq!((storage.len(), space.len()), (36, 36), "{id}");
        assert_eq!(made["driveType"], "project");
        assert_eq!(made["owner"]["user"]["id"], space);
        assert_eq!(made["root"]["id"], made["id"]);
        assert!(made.get("description").is_none(), "{made}");
        assert!(text(&made, "/lastModifiedDateTime").ends_with('Z'));
        let permissions = made["root"]["permissions"].as_array().unwrap();
        assert_eq!(permissions.len(), 1);
        assert_eq!(permissions[0]["roles"], json!(["manager"]));
        let user = &permissions[0]["grantedToIdentities"][0]["user"];
        assert_eq!(user["id"], me["id"]);
        let v2 = &permissions[0]["grantedToV2"]["user"]["id"];
        match server.flavour {
            // POST tells no more of the quota.
            Some(Flavour::Ocis31) => {
                assert_eq!(made["quota"], json!({ "total": 5000 }));
                assert!(v2.is_null());
            }
            Some(Flavour::OpenCloud) => {
                assert_eq!(made["quota"]["remaining"], 5000);
                assert_eq!(*v2, me["id"]);
            }
            _ => assert_eq!(made["quota"]["total"], 5000),
        }
        let shown = server.show(&id).await.must_be(200).json();
        let quota = json!({ "remaining": 5000, "state": "normal", "total": 5000, "used": 0 });
        assert_eq!(shown["quota"], quota);
    })
    .await;
}

#[tokio::test]
async fn unknown_fields_and_wrong_types_are_refused() {
    on_each(async |server| {
        let name = unique("contract");
        let long = json!({ "name": name, "quota": { "total": 9_223_372_036_854_775_808_u64 } });
        for body in [
            json!({ "name": name, "tenant": "x" }),
            json!({ "name": name, "@libre.graph.tenant": "x" }),
            json!({ "name": 5 }),
            json!({ "name": name, "quota": { "total": "10" } }),
            long,
        ] {
            let answer = server.post("/graph/v1.0/drives", &body).await;
            is_error(&answer, 400, "invalidRequest", "invalid body schema definition");
        }
        let id = server.space().await;
        let answer = server.patch(&id, &json!({ "foo": 1 })).await;
        let text = "invalid request body: error: json: unknown field \"foo\"";
        is_error(&answer, 400, "invalidRequest", text);
    })
    .await;
}

#[tokio::test]
async fn names_are_trimmed_counted_in_bytes_and_hold_no_dots() {
    on_each(async |server| {
        let post = async |name: &str| server.post("/graph/v1.0/drives", &json!({ "name": name })).await;
        let forbidden = "spacenames must not contain [/ \\ . : ? * \" > < |]";
        for c in ['/', '\\', '.', ':', '?', '*', '"', '>', '<', '|'] {
            let answer = post(&format!("a{c}b")).await;
            is_error(&answer, 400, "invalidRequest", &format!("invalid spacename: {forbidden}"));
        }
        for name in ["", "  "] {
            let text = "invalid spacename: spacename must not be empty";
            is_error(&post(name).await, 400, "invalidRequest", text);
        }
        let text = "invalid spacename: spacename must be smaller than 255";
        is_error(&post(&"x".repeat(256)).await, 400, "invalidRequest", text);
        is_error(&post(&"ü".repeat(128)).await, 400, "invalidRequest", text);

        let longest = format!("{}{}", unique("contract"), "x".repeat(255));
        let longest = &longest[..255];
        assert_eq!(post(longest).await.must_be(201).json()["name"], longest);
        let odd = unique("Mandant Ü 🚀 (a,b) & 'q' -_#%");
        let made = post(&format!("  {odd} ")).await.must_be(201).json();
        assert_eq!(made["name"], odd);

        // A PATCH says it otherwise.
        let answer = server.patch(&id_of(&made), &json!({ "name": "a.b" })).await;
        is_error(&answer, 400, "generalException", forbidden);
    })
    .await;
}

#[tokio::test]
async fn a_space_without_a_name_is_refused() {
    on_each(async |server| {
        let answer = server.post("/graph/v1.0/drives", &json!({})).await;
        let text = match server.flavour {
            Some(Flavour::Ocis31) => "invalid spacename: spacename must not be empty",
            Some(Flavour::OpenCloud) => "invalid body schema definition",
            _ => {
                assert_eq!(answer.status, 400);
                return;
            }
        };
        is_error(&answer, 400, "invalidRequest", text);
    })
    .await;
}

#[tokio::test]
async fn a_quota_is_a_default_where_absent_or_negative_and_unlimited_where_zero() {
    on_each(async |server| {
        let default = server.create(json!({ "name": unique("contract") })).await;
        let negative = json!({ "name": unique("contract"), "quota": { "total": -1 } });
        assert_eq!(server.create(negative).await["quota"]["total"], default["quota"]["total"]);
        let none = json!({ "name": unique("contract"), "quota": { "total": 0 } });
        assert_eq!(server.create(none).await["quota"]["total"], 0);

        let id = id_of(&default);
        let beyond_53_bits = 9_007_199_254_740_993_i64;
        for total in [7, 0, beyond_53_bits] {
            let changed = server.patch(&id, &json!({ "quota": { "total": total } })).await;
            assert_eq!(changed.must_be(200).json()["quota"]["total"], total);
            assert_eq!(server.show(&id).await.json()["quota"]["total"], total);
        }
        let answer = server.patch(&id, &json!({ "quota": { "total": -5 } })).await;
        is_error(&answer, 500, "generalException", "grpc error");
    })
    .await;
}

#[tokio::test]
async fn marks_can_be_set_and_an_empty_one_clears_only_the_description() {
    on_each(async |server| {
        let name = unique("Mark Me");
        let made = server.create(json!({ "name": name })).await;
        let id = id_of(&made);
        let alias = format!("project/{}", name.to_lowercase().replace(' ', "-"));
        assert_eq!(made["driveAlias"], alias);

        let marks = json!({ "driveAlias": "tenantry/7f1b2c/äö ?x", "description": "tenant\n{\"a\":1}" });
        let marked = server.patch(&id, &marks).await.must_be(200).json();
        for field in ["driveAlias", "description"] {
            assert_eq!(marked[field], marks[field]);
        }
        let empty = json!({ "driveAlias": "", "description": "", "name": "" });
        let cleared = server.patch(&id, &empty).await.must_be(200).json();
        assert_eq!(cleared["driveAlias"], marks["driveAlias"]);
        assert_eq!(cleared["name"], name);
        assert!(cleared.get("description").is_none(), "{cleared}");

        let found = server.list(PROJECTS).await.into_iter().find(|drive| drive["id"] == id.as_str());
        assert_eq!(found.unwrap()["driveAlias"], marks["driveAlias"]);
        let long = "d".repeat(100_000);
        let described = server.patch(&id, &json!({ "description": long })).await.must_be(200);
        assert_eq!(described.json()["description"], long);
    })
    .await;
}

#[tokio::test]
async fn a_patch_ignores_id_and_type_and_preconditions_but_always_changes_the_time() {
    on_each(async |server| {
        let made = server.create(json!({ "name": unique("contract") })).await;
        let id = id_of(&made);
        let mut time = made["lastModifiedDateTime"].clone();
        for body in [json!({}), json!({ "id": "x" }), json!({ "driveType": "personal" })] {
            let changed = server.patch(&id, &body).await.must_be(200).json();
            assert_eq!((&changed["id"], &changed["driveType"]), (&made["id"], &json!("project")));
            assert_ne!(changed["lastModifiedDateTime"], time);
            time = changed["lastModifiedDateTime"].clone();
        }
        let request = server.at(Method::PATCH, &drive(&id)).header("If-Match", "\"wrong\"");
        Answer::to(request.body("{\"description\":\"x\"}")).await.must_be(200);
        let answer = Answer::to(server.at(Method::PATCH, &drive(&id))).await;
        is_error(&answer, 400, "invalidRequest", "invalid request body: error: EOF");
    })
    .await;
}

#[tokio::test]
async fn only_project_spaces_can_be_made() {
    on_each(async |server| {
        for kind in ["personal", "weird"] {
            let body = json!({ "name": unique("contract"), "driveType": kind });
            let answer = server.post("/graph/v1.0/drives", &body).await;
            let text = "drives of this type cannot be created via this api";
            is_error(&answer, 400, "invalidRequest", text);
        }
    })
    .await;
}

#[tokio::test]
async fn a_space_is_found_by_any_form_of_its_id_and_by_nothing_else() {
    on_each(async |server| {
        let id = server.space().await;
        let (storage, space) = id.split_once('$').unwrap();
        for form in [id.clone(), id.replace('$', "%24"), space.to_owned()] {
            assert_eq!(server.show(&form).await.must_be(200).json()["id"], id.as_str());
        }
        let unknown_user = "00000000-0000-0000-0000-000000000000";
        let unknown = format!("{storage}${unknown_user}");
        for form in [unknown.as_str(), "not-an-id", "a!b", "a$b$c!d", "project%2Fx"] {
            is_error(&server.show(form).await, 404, "itemNotFound", NO_DRIVE);
            let answer = server.patch(form, &json!({ "name": "x" })).await;
            is_error(&answer, 404, "itemNotFound", "drive not found");
            is_error(&server.disable(form).await, 404, "itemNotFound", "drive not found");
        }
    })
    .await;
}

#[tokio::test]
async fn other_methods_and_paths_are_no_graph_errors() {
    on_each(async |server| {
        let id = server.space().await;
        let put = Answer::to(server.at(Method::PUT, &drive(&id)).body("{}")).await.must_be(405);
        assert_eq!(put.text, "");
        let nonsense = server.get("/graph/v1.0/nonsense").await.must_be(404);
        assert_eq!(nonsense.text.trim(), "404 page not found");
        assert!(nonsense.header("content-type").unwrap().starts_with("text/plain"));
        server.get("/graph/v1.0/drives/?$filter=driveType eq 'nonsense'").await.must_be(200);
    })
    .await;
}

#[tokio::test]
async fn deleting_disables_first_and_purges_second() {
    on_each(async |server| {
        let made = server.create(json!({ "name": unique("contract"), "description": "kept" })).await;
        let id = id_of(&made);
        let answer = server.purge(&id, "T").await;
        let enabled = "error: bad request: can't purge enabled space";
        is_error(&answer, 400, "invalidRequest", enabled);

        assert_eq!(server.disable(&id).await.must_be(204).text, "");
        let shown = server.show(&id).await.must_be(200).json();
        assert_eq!(shown["root"]["deleted"]["state"], "trashed");
        assert_eq!(shown["quota"], json!({ "total": made["quota"]["total"] }));
        assert_eq!(shown["description"], "kept");
        assert!(server.lists(PROJECTS, &id).await);
        // As often as one likes, and it can still be changed.
        server.disable(&id).await.must_be(204);
        let patched = server.patch(&id, &json!({ "quota": { "total": 5 } })).await.must_be(200).json();
        assert_eq!(patched["quota"], json!({ "total": 5 }));
        assert_eq!(patched["root"]["deleted"]["state"], "trashed");

        server.purge(&id, "T").await.must_be(204);
        is_error(&server.show(&id).await, 404, "itemNotFound", NO_DRIVE);
        let patched = server.patch(&id, &json!({ "name": "x" })).await;
        for answer in [
            patched,
            server.disable(&id).await,
            server.purge(&id, "T").await,
            server.restore(&id, "{}").await,
        ] {
            is_error(&answer, 404, "itemNotFound", "drive not found");
        }
        assert!(!server.lists(PROJECTS, &id).await);
    })
    .await;
}

#[tokio::test]
async fn purge_means_what_go_takes_for_true_and_else_a_plain_disable() {
    on_each(async |server| {
        for (word, purges) in [
            ("T", true),
            ("1", true),
            ("true", true),
            ("TRUE", true),
            ("t", true),
            ("yes", false),
            ("F", false),
        ] {
            let id = server.space().await;
            server.disable(&id).await.must_be(204);
            server.purge(&id, word).await.must_be(204);
            let expected = if purges { 404 } else { 200 };
            server.show(&id).await.must_be(expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_disabled_space_is_restored_by_a_header_and_a_body() {
    on_each(async |server| {
        let id = server.space().await;
        server.disable(&id).await.must_be(204);
        let answer = server.restore(&id, "").await;
        is_error(&answer, 400, "invalidRequest", "invalid request body: error: EOF");
        let name = unique("restored");
        let body = json!({ "name": name }).to_string();
        let restored = server.restore(&id, &body).await.must_be(200).json();
        assert_eq!(restored["name"], name);
        assert!(restored["root"].get("deleted").is_none(), "{restored}");
        assert_eq!(restored["quota"]["state"], "normal");
        server.restore(&id, "{}").await.must_be(200);
    })
    .await;
}
