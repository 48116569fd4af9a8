//! Calls inside a request: arguments, references, ids, and what `/set` promises.

use reqwest::StatusCode;
use serde_json::json;
use tenantry::dev::stalwart::{Options, Release};

use super::{
    NOT_REQUEST, Server, alone, assert_problem, ids, on_each, on_each_with, read, request, text,
};

#[tokio::test]
async fn wrong_arguments_fail_their_own_call_and_unknown_ones_are_ignored() {
    on_each(async |server| {
        let answers = server
            .calls(json!([
                ["x:Domain/get", { "ids": "abc" }, "0"],
                ["x:Domain/query", { "limit": "x" }, "1"],
                ["x:Domain/query", { "limit": -1 }, "2"],
                ["x:Domain/query", { "foo": 1, "limit": 1, "filter": null, "sort": null }, "3"],
                ["x:Domain/set", { "create": null, "update": null, "destroy": null }, "4"],
            ]))
            .await;
        for (name, error) in &answers[..3] {
            assert_eq!(
                (name.as_str(), &error["type"]),
                ("error", &json!("invalidArguments")),
                "{error}"
            );
        }
        assert_eq!(answers[3].0, "x:Domain/query");
        // Members without entries are left out, and there is no state.
        assert_eq!(answers[4].1.as_object().unwrap().keys().collect::<Vec<_>>(), ["accountId"]);
    })
    .await;
}

#[tokio::test]
async fn there_are_no_changes_and_no_states() {
    on_each(async |server| {
        for method in ["x:Domain/nosuch", "x:Nothing/get", "x:Domain/changes", "x:Domain/queryChanges"] {
            let error = server.call(method, json!({ "sinceState": "n" })).await.unwrap_err();
            assert_eq!(error, json!({ "type": "unknownMethod", "description": method }));
        }
        let name = server.name("state");
        let before = server.ok("x:Domain/query", json!({ "limit": 1 })).await;
        let arguments = json!({ "ifInState": "s123", "create": { "d": { "name": name } } });
        let set = server.ok("x:Domain/set", arguments).await;
        let after = server.ok("x:Domain/query", json!({ "limit": 1 })).await;
        for answer in [before, after] {
            assert_eq!(answer["queryState"], "n");
            assert_eq!(answer["canCalculateChanges"], true);
        }
        let id = text(&set["created"]["d"]["id"]);
        let got = server.ok("x:Domain/get", json!({ "ids": [id], "properties": ["name"] })).await;
        for member in ["state", "oldState", "newState"] {
            assert_eq!((set.get(member), got.get(member)), (None, None));
        }
    })
    .await;
}

/// Of the whole request until 0.16.18, with its secrets; of the call since.
#[tokio::test]
async fn a_malformed_state_is_refused_one_way_or_the_other() {
    let calls = json!([["x:Domain/set", { "ifInState": "bogus" }, "0"]]);
    let check = async |server: &Server| {
        let response = server.post(&request(calls.clone())).await;
        if response.status() == StatusCode::BAD_REQUEST {
            assert_problem(response, 400, NOT_REQUEST).await;
            return false;
        }
        let answer = read(response).await;
        assert_eq!(answer["methodResponses"][0][0], "error", "{answer}");
        assert_eq!(answer["methodResponses"][0][1]["type"], "invalidArguments", "{answer}");
        true
    };
    on_each(async |server| _ = check(server).await).await;
    for (release, fails_alone) in [(Release::R0_16_18, false), (Release::R0_16_19, true)] {
        let options = Options { release, ..Options::default() };
        alone(options, async |server| assert_eq!(check(server).await, fails_alone)).await;
    }
}

#[tokio::test]
async fn a_call_can_take_its_ids_from_an_earlier_answer() {
    on_each(async |server| {
        let name = server.name("reference");
        let id = server.made(&name, None).await;
        let from = |path: &str, of: &str| {
            json!({
                "#ids": { "resultOf": of, "name": "x:Domain/query", "path": path }, "properties": ["name"],
            })
        };
        let answers = server
            .calls(json!([
                ["x:Domain/query", { "filter": { "name": name } }, "q"],
                ["x:Domain/get", from("/ids", "q"), "g"],
                ["x:Domain/get", from("/ids", "zz"), "h"],
                ["x:Domain/get", from("/nope", "q"), "i"],
                ["x:Domain/query", { "filter": { "foo": 1 } }, "f"],
                ["x:Domain/get", from("/ids", "f"), "j"],
            ]))
            .await;
        assert_eq!(answers[1].1["list"], json!([{ "id": id, "name": name }]));
        for (index, of) in [(2, "zz"), (3, "q"), (5, "f")] {
            let description = format!("Result reference to {of}#x:Domain/query not found.");
            let error = json!({ "type": "invalidResultReference", "description": description });
            assert_eq!(answers[index], ("error".into(), error));
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_call_creates_a_later_one_can_name_and_what_it_did_not_it_cannot() {
    on_each_with(&["sysMailingListCreate", "sysMailingListDestroy"], async |server| {
        let name = server.name("creation");
        let manual = json!({ "@type": "Manual" });
        let domain = json!({ "name": name, "dkimManagement": manual });
        // The notes know of no reference from a domain; lists need no permissions to grant.
        let calls = json!([
            ["x:Domain/set", { "create": { "d": domain } }, "0"],
            ["x:Domain/get", { "ids": ["#d"], "properties": ["name"] }, "1"],
            ["x:MailingList/set", { "create": { "m": { "name": "all", "domainId": "#d" } } }, "2"],
        ]);
        let first = server.calls(calls.clone()).await;
        assert_eq!(first[1].1["list"][0]["name"], name);
        let list = text(&first[2].1["created"]["m"]["id"]);

        let second = server.calls(json!([calls[0], calls[2]])).await;
        assert_eq!(second[0].1["notCreated"]["d"]["type"], "primaryKeyViolation");
        let description = "Invalid reference to non-existing object \"d\" from \"m\"";
        let error = json!({ "type": "invalidResultReference", "description": description });
        assert_eq!(second[1], ("error".into(), error));

        let answer = server.ok("x:MailingList/set", json!({ "destroy": [list] })).await;
        assert_eq!(answer["destroyed"], json!([list]));
    })
    .await;
}

#[tokio::test]
async fn created_ids_come_back_when_they_are_asked_for() {
    on_each(async |server| {
        let name = server.name("echo");
        let domain = json!({ "name": name, "dkimManagement": { "@type": "Manual" } });
        let mut body = request(json!([["x:Domain/set", { "create": { "d": domain } }, "0"]]));
        body["createdIds"] = json!({});
        let answer = read(server.post(&body).await).await;
        let id = &answer["methodResponses"][0][1]["created"]["d"]["id"];
        assert_eq!(answer["createdIds"], json!({ "d": id }));
    })
    .await;
}

#[tokio::test]
async fn ids_that_are_none_are_dropped_without_a_word() {
    on_each(async |server| {
        let name = server.name("dropped");
        let id = server.made(&name, None).await;
        let arguments = json!({
            "update": { "!!": { "description": "x" }, id.clone(): { "description": "y" } },
            "destroy": ["??"],
        });
        let answer = server.ok("x:Domain/set", arguments).await;
        assert_eq!(answer["updated"], json!({ id.clone(): null }));
        for member in ["notUpdated", "destroyed", "notDestroyed"] {
            assert_eq!(answer.get(member), None, "{answer}");
        }
        // So are references to what the same request creates.
        let other = server.name("dropped");
        let domain = json!({ "name": other, "dkimManagement": { "@type": "Manual" } });
        let answers = server
            .calls(json!([
                ["x:Domain/set", { "create": { "d": domain } }, "0"],
                ["x:Domain/set", { "update": { "#d": { "description": "x" } }, "destroy": ["#d"] }, "1"],
                ["x:Domain/query", { "filter": { "name": other } }, "2"],
            ]))
            .await;
        assert_eq!(answers[1].1.as_object().unwrap().len(), 1, "{answers:?}");
        assert_eq!(json!(ids(&answers[2].1)), json!([answers[0].1["created"]["d"]["id"]]));
    })
    .await;
}

#[tokio::test]
async fn unknown_ids_are_not_found_and_get_lists_malformed_ones_too() {
    on_each(async |server| {
        let unknown = "zzzzzzzz";
        let answer = server.ok("x:Domain/get", json!({ "ids": [unknown, "!!"] })).await;
        // In no particular order.
        let mut missing: Vec<String> = answer["notFound"].as_array().unwrap().iter().map(text).collect();
        missing.sort_unstable();
        assert_eq!((&answer["list"], missing), (&json!([]), vec!["!!".to_owned(), unknown.to_owned()]));
        let arguments = json!({ "update": { unknown: { "description": "x" } } });
        let answer = server.ok("x:Domain/set", arguments).await;
        assert_eq!(answer["notUpdated"], json!({ unknown: { "type": "notFound" } }));
        let answer = server.ok("x:Domain/set", json!({ "destroy": [unknown] })).await;
        assert_eq!(answer["notDestroyed"], json!({ unknown: { "type": "notFound" } }));
    })
    .await;
}

#[tokio::test]
async fn five_hundred_objects_are_the_most_of_one_call() {
    on_each(async |server| {
        let many = vec!["zzzzzzzz"; 501];
        let got = server.call("x:Domain/get", json!({ "ids": many })).await.unwrap_err();
        assert_eq!(got["type"], "requestTooLarge");
        let set = server.call("x:Domain/set", json!({ "destroy": many })).await.unwrap_err();
        assert_eq!(set["type"], "requestTooLarge");
    })
    .await;
}

/// Alone, for it needs a server that is full.
#[tokio::test]
async fn everything_is_only_the_first_five_hundred_and_five_thousand_ids() {
    alone(Options::default(), async |server| {
        for index in 0..5001 {
            server.simulator().plant(&format!("full{index:04}.test"), json!({}));
        }
        let answer = server.ok("x:Domain/get", json!({ "ids": null, "properties": ["name"] })).await;
        let list = answer["list"].as_array().unwrap();
        assert_eq!((list.len(), &answer["notFound"]), (500, &json!([])));
        assert_eq!(list[499]["name"], "full0499.test");
        assert_eq!(ids(&server.ok("x:Domain/query", json!({})).await).len(), 5000);
        let arguments = json!({ "limit": 10_000, "calculateTotal": true });
        let answer = server.ok("x:Domain/query", arguments).await;
        assert_eq!((ids(&answer).len(), &answer["total"]), (5000, &json!(5001)));
        let reference = json!({ "resultOf": "q", "name": "x:Domain/query", "path": "/ids" });
        let answers = server
            .calls(json!([
                ["x:Domain/query", {}, "q"],
                ["x:Domain/get", { "#ids": reference, "properties": ["name"] }, "g"],
            ]))
            .await;
        assert_eq!(answers[1].1["type"], "requestTooLarge");
    })
    .await;
}

#[tokio::test]
async fn a_set_is_not_atomic() {
    on_each(async |server| {
        let (good, other) = (server.name("good"), server.name("other"));
        let manual = json!({ "@type": "Manual" });
        let create = json!({
            "a": { "name": good, "dkimManagement": manual },
            "b": { "name": "nodot" },
            "c": { "name": other, "dkimManagement": manual },
        });
        let answer = server.ok("x:Domain/set", json!({ "create": create })).await;
        assert_eq!(answer["created"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(answer["notCreated"]["b"]["type"], "invalidPatch");
    })
    .await;
}

/// Alone: races come when they like.
#[tokio::test]
async fn a_lost_race_is_a_method_error_although_part_of_the_set_is_done() {
    alone(Options::default(), async |server| {
        server.simulator().fail_next_set_after(2);
        let create = json!({
            "a": { "name": "a.test" }, "b": { "name": "b.test" }, "c": { "name": "c.test" },
        });
        let arguments = json!({ "create": create });
        let error = server.call("x:Domain/set", arguments.clone()).await.unwrap_err();
        assert_eq!(error["type"], "serverUnavailable");
        assert_eq!(server.simulator().count(), 2);
        let answer = server.ok("x:Domain/set", arguments).await;
        assert_eq!(answer["created"].as_object().unwrap().keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(answer["notCreated"].as_object().unwrap().len(), 2);
    })
    .await;
}
