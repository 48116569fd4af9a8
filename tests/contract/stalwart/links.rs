//! What is linked to a domain: keys, accounts, lists.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenantry::dev::stalwart::{Options, Release};

use super::{PATIENCE, Server, alone, ids, on_each, on_each_with, text};
use crate::support::skip;

/// What it takes to put accounts and lists into a domain, and out again.
const MAILBOXES: [&str; 6] = [
    "sysAccountQuery",
    "sysAccountCreate",
    "sysAccountDestroy",
    "sysMailingListQuery",
    "sysMailingListCreate",
    "sysMailingListDestroy",
];

#[tokio::test]
async fn a_destroyed_domain_is_gone_at_once_and_its_name_free_for_another_id() {
    on_each(async |server| {
        let name = server.name("again");
        let id = server.made(&name, None).await;
        let answer = server.ok("x:Domain/set", json!({ "destroy": [id] })).await;
        assert_eq!(answer["destroyed"], json!([id]));
        assert!(server.find(json!({ "name": name })).await.is_empty());
        assert_ne!(server.made(&name, None).await, id);
    })
    .await;
}

#[tokio::test]
async fn automatic_keys_appear_later_and_then_keep_their_domain_from_being_destroyed() {
    on_each_with(&["sysDkimSignatureGet"], async |server| {
        let name = server.name("dkim");
        let id = text(&server.create(json!({ "name": name })).await["created"]["d"]["id"]);
        let filter = json!({ "filter": { "domainId": id } });
        let until = Instant::now() + PATIENCE;
        let signatures = loop {
            let found = ids(&server.ok("x:DkimSignature/query", filter.clone()).await);
            if found.len() == 2 {
                break found;
            }
            assert!(Instant::now() < until, "there are still {} signatures", found.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let got = server.ok("x:DkimSignature/get", json!({ "ids": signatures })).await;
        for signature in got["list"].as_array().unwrap() {
            assert_eq!(signature["domainId"], id);
            assert_eq!(signature["privateKey"]["secret"], "****");
        }
        let answer = server.ok("x:Domain/set", json!({ "destroy": [id] })).await;
        let refused = &answer["notDestroyed"][&id];
        assert_eq!(refused["type"], "objectIsLinked");
        assert_eq!(refused["objectId"], json!({ "object": "Domain", "id": id }));
        let linked = refused["linkedObjects"].as_array().unwrap();
        assert_eq!(linked.len(), 2);
        assert!(linked.iter().all(|link| link["object"] == "DkimSignature"), "{linked:?}");

        // One request is enough.
        let reference = json!({ "resultOf": "q", "name": "x:DkimSignature/query", "path": "/ids" });
        let answers = server
            .calls(json!([
                ["x:DkimSignature/query", filter, "q"],
                ["x:DkimSignature/set", { "#destroy": reference }, "s"],
                ["x:Domain/set", { "destroy": [id] }, "d"],
            ]))
            .await;
        assert_eq!(answers[1].1["destroyed"].as_array().unwrap().len(), 2);
        assert_eq!(answers[2].1["destroyed"], json!([id]));
    })
    .await;
}

/// Alone, for it is a race: with 0.16.18 none was seen to be left.
#[tokio::test]
async fn a_domain_destroyed_before_its_keys_came_can_leave_one_since_0_16_19() {
    for (release, left) in [(Release::R0_16_18, 0), (Release::R0_16_19, 1)] {
        let dkim_delay = Duration::from_millis(300);
        let options = Options { release, dkim_delay, ..Options::default() };
        alone(options, async |server| destroy_before_the_keys(server, left).await).await;
    }
}

/// Whatever is left is found by the id that the domain had.
#[tokio::test]
async fn keys_of_a_domain_that_is_gone_can_be_found_and_removed() {
    on_each(async |server| {
        let name = server.name("left");
        let id = text(&server.create(json!({ "name": name })).await["created"]["d"]["id"]);
        let answer = server.ok("x:Domain/set", json!({ "destroy": [id] })).await;
        assert_eq!(answer["destroyed"], json!([id]));
        // A real server takes half a second to make them, and does not always leave one.
        let filter = json!({ "filter": { "domainId": id } });
        let until = Instant::now() + Duration::from_secs(1);
        let mut left = Vec::new();
        while left.is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
            left = ids(&server.ok("x:DkimSignature/query", filter.clone()).await);
        }
        if !left.is_empty() {
            let dropped = server.ok("x:DkimSignature/set", json!({ "destroy": left })).await;
            assert_eq!(dropped["destroyed"].as_array().unwrap().len(), left.len());
        }
        assert!(ids(&server.ok("x:DkimSignature/query", filter).await).is_empty());
    })
    .await;
}

async fn destroy_before_the_keys(server: &Server, left: usize) {
    let first = text(&server.create(json!({ "name": "fast.test" })).await["created"]["d"]["id"]);
    let answer = server.ok("x:Domain/set", json!({ "destroy": [first] })).await;
    assert_eq!(answer["destroyed"], json!([first]), "well before the keys");
    // The keys of a later domain come later, so once they are there, the first has none coming.
    server.create(json!({ "name": "later.test" })).await;
    let until = Instant::now() + PATIENCE;
    let signatures = loop {
        let answer = server.ok("x:DkimSignature/get", json!({ "properties": ["domainId"] })).await;
        let list = answer["list"].as_array().unwrap().clone();
        if list.iter().any(|it| it["domainId"] != json!(first)) {
            break list;
        }
        assert!(Instant::now() < until, "no keys ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let of_the_first = signatures.iter().filter(|it| it["domainId"] == json!(first));
    assert_eq!(of_the_first.count(), left, "{signatures:?}");
}

#[tokio::test]
async fn keys_managed_by_hand_do_not_come_by_themselves() {
    on_each(async |server| {
        let id = server.made(&server.name("manual"), None).await;
        let later = server.create(json!({ "name": server.name("automatic") })).await;
        let later = text(&later["created"]["d"]["id"]);
        let keys = async |id: &str| {
            let filter = json!({ "filter": { "domainId": id } });
            ids(&server.ok("x:DkimSignature/query", filter).await).len()
        };
        let until = Instant::now() + PATIENCE;
        while keys(&later).await < 2 {
            assert!(Instant::now() < until, "no keys ever");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(keys(&id).await, 0);
        let answer = server.ok("x:Domain/set", json!({ "destroy": [id] })).await;
        assert_eq!(answer["destroyed"], json!([id]));
    })
    .await;
}

#[tokio::test]
async fn accounts_and_lists_keep_their_domain_and_share_its_addresses() {
    on_each_with(&MAILBOXES, async |server| {
        let name = server.name("linked");
        let id = server.made(&name, None).await;
        // Without permissions of its own it takes none to grant them.
        let replace = json!({ "@type": "Replace", "enabledPermissions": {}, "disabledPermissions": {} });
        let user = json!({ "@type": "User", "name": "Admin", "domainId": id, "permissions": replace });
        let answer = server.ok("x:Account/set", json!({ "create": { "a": user } })).await;
        let account = text(&answer["created"]["a"]["id"]);
        let list = json!({ "name": "all", "domainId": id, "recipients": { "x@example.com": true } });
        let answer = server.ok("x:MailingList/set", json!({ "create": { "m": list } })).await;
        let list = text(&answer["created"]["m"]["id"]);

        let taken = json!({ "name": "admin", "domainId": id });
        let answer = server.ok("x:MailingList/set", json!({ "create": { "m": taken } })).await;
        let holder = json!({ "object": "Account", "id": account });
        let violation = json!({
            "type": "primaryKeyViolation", "properties": ["email"], "objectId": holder,
        });
        assert_eq!(answer["notCreated"]["m"], violation);

        let answer = server.ok("x:Domain/set", json!({ "destroy": [id] })).await;
        let linked = &answer["notDestroyed"][&id]["linkedObjects"];
        for link in [holder, json!({ "object": "MailingList", "id": list })] {
            assert!(linked.as_array().unwrap().contains(&link), "{linked}");
        }
        let filter = json!({ "filter": { "domainId": id } });
        let found = server.ok("x:Account/query", filter.clone()).await;
        assert_eq!(ids(&found), std::slice::from_ref(&account));
        // Lists cannot be found by their domain.
        let error = server.call("x:MailingList/query", filter).await.unwrap_err();
        assert_eq!(error["type"], "unsupportedFilter");

        let answer = server.ok("x:MailingList/set", json!({ "destroy": [list] })).await;
        assert_eq!(answer["destroyed"], json!([list]));
        let answer = server.ok("x:Account/set", json!({ "destroy": [account] })).await;
        assert_eq!(answer["destroyed"], json!([account]));
        let answer = server.ok("x:Domain/set", json!({ "destroy": [id] })).await;
        assert_eq!(answer["destroyed"], json!([id]));
    })
    .await;
}

/// For a credential that does not hold all that the role User has.
#[tokio::test]
async fn a_provisioner_cannot_make_accounts_that_may_more_than_itself() {
    on_each_with(&["sysAccountCreate"], async |server| {
        let held = server.permissions().await;
        let more = ["jmapPrincipalCreate", "impersonate"];
        if let Some(more) = more.into_iter().find(|more| held.iter().any(|held| held == more)) {
            return skip(&server.url, &format!("the credential has {more}"));
        }
        let id = server.made(&server.name("grants"), None).await;
        let user = json!({ "@type": "User", "name": "admin", "domainId": id });
        let answer = server.ok("x:Account/set", json!({ "create": { "a": user } })).await;
        let refused = &answer["notCreated"]["a"];
        assert_eq!(refused["type"], "forbidden");
        assert!(
            text(&refused["description"]).starts_with("You are not authorized to grant permissions")
        );
        let other = server.call("x:Domain/query", json!({ "accountId": "c" })).await.unwrap_err();
        let description = "You are not an owner of account c";
        assert_eq!(other, json!({ "type": "forbidden", "description": description }));
    })
    .await;
}

#[tokio::test]
async fn a_domain_of_an_account_must_exist() {
    on_each_with(&["sysMailingListCreate"], async |server| {
        let create = async |properties: Value| {
            let answer = server.ok("x:MailingList/set", json!({ "create": { "m": properties } })).await;
            answer["notCreated"]["m"].clone()
        };
        let unknown = create(json!({ "name": "x", "domainId": "zzzzzzzz" })).await;
        let object = json!({ "object": "Domain", "id": "zzzzzzzz" });
        assert_eq!(unknown, json!({ "type": "invalidForeignKey", "objectId": object }));
        let malformed = create(json!({ "name": "x", "domainId": "!!" })).await;
        assert_eq!(malformed["description"], "Failed to parse Id from string");
        let missing = create(json!({ "name": "x" })).await;
        assert_eq!(missing["type"], "validationFailed");
    })
    .await;
}
