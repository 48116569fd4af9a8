//! Who may do what, and how an account is made a member.

use super::*;

#[tokio::test]
async fn a_plain_user_makes_no_spaces_and_lists_only_the_own() {
    on_each_with_another(async |server, owner| {
        let id = server.space().await;
        let request = server.as_(Method::POST, "/graph/v1.0/drives", owner);
        let answer = Answer::to(request.body("{\"name\":\"x\"}")).await;
        is_error(&answer, 403, "notAllowed", "insufficient permissions to create a space.");
        let request = server.as_(Method::GET, "/graph/v1.0/drives", owner);
        let listed = Answer::to(request).await.must_be(200).json();
        let kinds: Vec<String> =
            listed["value"].as_array().unwrap().iter().map(|drive| text(drive, "/driveType")).collect();
        assert!(kinds.contains(&"personal".to_owned()), "{kinds:?}");
        assert!(listed["value"].as_array().unwrap().iter().all(|drive| drive["id"] != id.as_str()));
        is_error(
            &Answer::to(server.as_(Method::GET, &drive(&id), owner)).await,
            404,
            "itemNotFound",
            NO_DRIVE,
        );
        for (body, status) in [("{\"name\":\"x\"}", 404), ("{\"quota\":{\"total\":5}}", 403)] {
            let request = server.as_(Method::PATCH, &drive(&id), owner).body(body);
            Answer::to(request).await.must_be(status);
        }
        Answer::to(server.as_(Method::DELETE, &drive(&id), owner)).await.must_be(404);
    })
    .await;
}

#[tokio::test]
async fn a_manager_changes_all_marks_and_even_purges_but_sets_no_quota() {
    on_each_with_another(async |server, owner| {
        let id = server.space().await;
        let name = name_of(server, owner).await;
        server.share(&id, 7, &name, "manager").await.must_be(200);
        let patch = async |body: &str| {
            Answer::to(server.as_(Method::PATCH, &drive(&id), owner).body(body.to_owned())).await
        };
        let marks = "{\"name\":\"n\",\"description\":\"d\",\"driveAlias\":\"a\"}";
        assert_eq!(patch(marks).await.must_be(200).json()["driveAlias"], "a");
        let answer = patch("{\"quota\":{\"total\":5000}}").await;
        is_error(&answer, 403, "notAllowed", "user is not allowed to set the space quota");
        Answer::to(server.as_(Method::DELETE, &drive(&id), owner)).await.must_be(204);
        let request = server.as_(Method::DELETE, &drive(&id), owner).header("Purge", "T");
        Answer::to(request).await.must_be(204);
        assert!(!server.lists(PROJECTS, &id).await);
    })
    .await;
}

/// The name by which the shares know the account of a token; it is made by its first request.
async fn name_of(server: &Server, token: &str) -> String {
    text(&server.me(token).await.must_be(200).json(), "/onPremisesSamAccountName")
}

/// The other account is made a manager, and removes ours.
#[tokio::test]
async fn who_is_no_member_any_more_finds_the_space_only_in_the_list() {
    on_each_with_another(async |server, owner| {
        let id = server.space().await;
        let (name, ours) = (name_of(server, owner).await, name_of(server, &server.token).await);
        server.share(&id, 7, &name, "manager").await.must_be(200);
        let path = format!("{SHARES}/{}?format=json&shareWith={ours}", id.replace('$', "%24"));
        Answer::to(server.as_(Method::DELETE, &path, owner)).await.must_be(200);
        assert!(server.lists(PROJECTS, &id).await);
        let by_id = format!("/graph/v1.0/drives?$filter=id eq '{}'", id.replace('$', "%24"));
        match server.flavour {
            Some(Flavour::Ocis31) => {
                is_error(&server.show(&id).await, 404, "itemNotFound", NO_DRIVE);
                assert!(server.list(&by_id).await.is_empty());
            }
            _ => {
                server.show(&id).await.must_be(200);
                assert_eq!(server.list(&by_id).await.len(), 1);
            }
        }
        assert!(!server.lists("/graph/v1.0/me/drives", &id).await);
        // A change finds it, a request for none does not.
        server.patch(&id, &json!({ "description": "still ours" })).await.must_be(200);
        server.patch(&id, &json!({ "quota": { "total": 7 } })).await.must_be(200);
        is_error(&server.patch(&id, &json!({})).await, 404, "itemNotFound", "drive not found");
        // It cannot let itself in again.
        server.share(&id, 7, &ours, "manager").await.must_be(404);
        server.disable(&id).await.must_be(204);
        assert!(server.lists(PROJECTS, &id).await);
        server.restore(&id, "{}").await.must_be(200);
        server.disable(&id).await.must_be(204);
        server.purge(&id, "T").await.must_be(204);
        assert!(!server.lists(PROJECTS, &id).await);
    })
    .await;
}

/// The role of a user or group in `root.permissions`, by display name.
fn role_of(drive: &Value, kind: &str, name: &str) -> Option<String> {
    let permissions = drive["root"]["permissions"].as_array()?;
    let found = permissions
        .iter()
        .find(|permission| permission["grantedToIdentities"][0][kind]["displayName"] == name)?;
    Some(text(found, "/roles/0"))
}

#[track_caller]
fn is_ocs(answer: &Answer, status: u16, code: u16, message: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let meta = &answer.json()["ocs"]["meta"];
    assert_eq!(meta["statuscode"], code, "{meta}");
    assert_eq!(meta["message"], message, "{meta}");
    assert_eq!(answer.header("ocs-api-version"), Some("2"));
}

/// Simulated only: it needs users and groups that are known.
#[tokio::test]
async fn ocs_shares_make_members_by_name() {
    on_simulated(async |world| {
        let server = &world.server;
        let id = server.space().await;
        world.ocis.add_user("einstein");
        let group = world.ocis.add_group("tenant-a");
        let show = async || server.show(&id).await.must_be(200).json();

        is_ocs(&server.share(&id, 7, "einstein", "editor").await, 200, 200, "OK");
        assert_eq!(role_of(&show().await, "user", "einstein").as_deref(), Some("editor"));
        server.share(&id, 7, "einstein", "editor").await.must_be(200);
        server.share(&id, 7, "einstein", "viewer").await.must_be(200);
        assert_eq!(role_of(&show().await, "user", "einstein").as_deref(), Some("viewer"));
        server.share(&id, 8, "tenant-a", "manager").await.must_be(200);
        let shown = show().await;
        assert_eq!(role_of(&shown, "group", "tenant-a").as_deref(), Some("manager"));
        assert!(shown.to_string().contains(&group));

        // By id there is no such account, and the role is not checked.
        for (kind, with) in [(7, "nobody"), (8, "nobody"), (8, group.as_str()), (7, "tenant-a")] {
            let answer = server.share(&id, kind, with, "viewer").await;
            is_ocs(&answer, 404, 998, "error getting grantee");
        }
        server.share(&id, 7, "einstein", "boss").await.must_be(200);
        let unknown = server.share("unknown", 7, "einstein", "viewer").await;
        is_ocs(&unknown, 404, 404, "Wrong path, file/folder doesn't exist");

        is_ocs(&server.unshare(&id, "einstein").await, 200, 200, "OK");
        is_ocs(&server.unshare(&id, "einstein").await, 500, 996, "error removing grant");
        server.unshare(&id, "tenant-a").await.must_be(200);
        let last = server.unshare(&id, SERVICE).await;
        is_ocs(&last, 403, 403, "can't remove the last manager");
        let demoted = server.share(&id, 7, SERVICE, "viewer").await;
        is_ocs(&demoted, 403, 403, "the space must have at least one manager");
        assert_eq!(show().await["root"]["permissions"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_server_without_a_route_to_invite_says_so_in_plain_text() {
    on_each(async |server| {
        let id = server.space().await;
        let missing = |answer: &Answer| {
            assert_eq!((answer.status, answer.text.trim()), (404, "404 page not found"), "{answer:?}");
        };
        let roles = server.get("/graph/v1beta1/roleManagement/permissions/roleDefinitions").await;
        let invited = server.invite(&id, json!([]), json!([])).await;
        match server.flavour {
            Some(Flavour::Ocis31) => {
                missing(&server.get("/graph/v1beta1/drives").await);
                missing(&roles);
                missing(&invited);
            }
            // The roles are told, and yet there is no route to invite.
            Some(Flavour::Ocis5) => {
                roles.must_be(200);
                missing(&invited);
            }
            _ => {
                roles.must_be(200);
                invited.must_be(400);
            }
        }
    })
    .await;
}

/// Simulated only: it needs users and groups that are known.
#[tokio::test]
async fn invitations_make_members_by_id_one_at_a_time() {
    for flavour in [Flavour::Ocis7, Flavour::OpenCloud] {
        invitations_make_members_by_id(&World::new(flavour).await).await;
    }
}

async fn invitations_make_members_by_id(world: &World) {
    let server = &world.server;
    let made = server.create(json!({ "name": "Invited" })).await;
    let id = id_of(&made);
    let user = world.ocis.add_user("einstein");
    let group = world.ocis.add_group("tenant-a");
    let to = |id: &str, kind: &str| json!({ "objectId": id, "@libre.graph.recipient.type": kind });

    let invited = server.invite(&id, json!([to(&group, "group")]), json!([VIEWER])).await;
    let permission = &invited.must_be(200).json()["value"][0];
    assert_eq!(permission["id"], format!("g:{group}"));
    assert_eq!(permission["roles"], json!([VIEWER]));
    assert_eq!(permission["grantedToV2"]["group"]["displayName"], "tenant-a");
    let invited = server.invite(&id, json!([to(&user, "user")]), json!([MANAGER])).await;
    assert_eq!(invited.must_be(200).json()["value"][0]["id"], format!("u:{user}"));
    for role in [MANAGER, VIEWER] {
        let again = server.invite(&id, json!([to(&user, "user")]), json!([role])).await;
        let text = "add grant: error: already exists: Invited";
        is_error(&again, 409, "nameAlreadyExists", text);
    }
    let refused = async |recipients: Value, roles: Value, word: &str| {
        let answer = server.invite(&id, recipients, roles).await.must_be(400);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "invalidRequest");
        assert!(text(error, "/message").contains(word), "{error}");
    };
    let other = world.ocis.add_user("marie");
    refused(json!([{ "objectId": other }]), json!([VIEWER]), "'oneof'").await;
    refused(json!([to("marie", "user")]), json!([VIEWER]), "itemNotFound: not found").await;
    refused(json!([to(&other, "user")]), json!(["unknown"]), "'available_role'").await;
    refused(json!([to(&other, "user")]), json!([]), "'one_or_another'").await;
    let two = json!([to(&other, "user"), to(&user, "user")]);
    refused(two, json!([VIEWER]), "'len'").await;
    let file_viewer = "b1e2218d-eef8-4d4c-b82d-0f1a1b48f3b5";
    refused(json!([to(&other, "user")]), json!([file_viewer]), "not applicable").await;

    let path = format!("/graph/v1beta1/drives/{id}/root/permissions");
    let listed = server.get(&path).await.must_be(200).json();
    assert_eq!(listed["value"].as_array().unwrap().len(), 3);
    let one = format!("{path}/g:{group}");
    let request = server.at(Method::PATCH, &one).body(json!({ "roles": [EDITOR] }).to_string());
    assert_eq!(Answer::to(request).await.must_be(200).json()["roles"], json!([EDITOR]));
    let shown = server.show(&id).await.json();
    assert_eq!(role_of(&shown, "group", "tenant-a").as_deref(), Some("editor"));
    Answer::to(server.at(Method::DELETE, &one)).await.must_be(204);
    let again = Answer::to(server.at(Method::DELETE, &one)).await.must_be(500);
    assert_eq!(again.json()["error"]["code"], "generalException");

    assert!(world.ocis.expel(&id));
    for answer in
        [server.get(&path).await, server.invite(&id, json!([to(&other, "user")]), json!([VIEWER])).await]
    {
        let space = id.split_once('$').unwrap().1;
        let text = format!("stat: error: not found: {id}!{space}");
        is_error(&answer, 404, "itemNotFound", &text);
    }
}

/// Simulated only: it needs groups that are known.
#[tokio::test]
async fn a_groups_id_is_found_by_a_search_on_opencloud_and_not_at_all_on_ocis_3_1() {
    on_simulated(async |world| {
        let server = &world.server;
        let id = world.ocis.add_group("tenant-acme");
        world.ocis.add_group("tenant-acme-2");
        let list = server.get("/graph/v1.0/groups").await;
        let search = server.get("/graph/v1.0/groups?$search=\"tenant-acme\"").await;
        match server.flavour {
            Some(Flavour::Ocis31) => {
                is_error(&list, 401, "accessDenied", "Unauthorized");
                is_error(&search, 401, "accessDenied", "Unauthorized");
            }
            _ => {
                is_error(&list, 403, "accessDenied", "search term too short");
                let found = search.must_be(200).json();
                let found = found["value"].as_array().unwrap();
                // Also what only contains it.
                assert_eq!(found.len(), 2);
                let exact = found.iter().find(|group| group["displayName"] == "tenant-acme");
                assert_eq!(exact.unwrap()["id"], id.as_str());
                // A dash needs quotation marks.
                let unquoted = server.get("/graph/v1.0/groups?$search=tenant-acme").await;
                is_error(&unquoted, 400, "invalidRequest", "Token '-acme' is invalid");
            }
        }
        let by_id = server.get(&format!("/graph/v1.0/groups/{id}")).await.must_be(200).json();
        assert_eq!(by_id["displayName"], "tenant-acme");
        let made = server.post("/graph/v1.0/groups", &json!({ "displayName": "x" })).await;
        match server.flavour {
            Some(Flavour::Ocis31) => is_error(&made, 401, "accessDenied", "Unauthorized"),
            _ => is_error(&made, 403, "accessDenied", "Forbidden"),
        }
    })
    .await;
}
