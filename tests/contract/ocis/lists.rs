//! Lists of spaces, and what a client must not believe of them.

use super::*;

#[tokio::test]
async fn filters_on_anything_but_type_and_id_are_ignored_silently() {
    on_each(async |server| {
        let id = server.space().await;
        for field in ["name", "driveAlias", "description", "nosuchfield"] {
            let path = format!("/graph/v1.0/drives?$filter={field} eq 'no space has this'");
            assert!(server.lists(&path, &id).await, "{field}");
        }
        assert!(server.lists(PROJECTS, &id).await);
        let personal = server.list("/graph/v1.0/drives?$filter=driveType eq 'personal'").await;
        assert!(!personal.is_empty());
        assert!(personal.iter().all(|drive| drive["driveType"] == "personal"));
        let by_id = format!("/graph/v1.0/drives?$filter=id eq '{}'", id.replace('$', "%24"));
        let found = server.list(&by_id).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["id"], id.as_str());
        assert!(server.list("/graph/v1.0/drives?$filter=driveType eq 'nonsense'").await.is_empty());
        assert!(server.list("/graph/v1.0/drives?$filter=id eq 'nonsense'").await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn operands_other_than_eq_are_not_supported_and_nonsense_is_refused() {
    on_each(async |server| {
        for (filter, operand) in [
            ("driveType ne 'personal'", "ne"),
            ("driveType eq 'project' and name eq 'x'", "and"),
            ("not (driveType eq 'personal')", "not"),
            ("startswith(name,'Ten')", "startswith"),
            ("contains(name,'Ten')", "contains"),
        ] {
            let answer = server.get(&format!("/graph/v1.0/drives?$filter={filter}")).await;
            let text = format!("unsupported filter operand: {operand}");
            is_error(&answer, 501, "notSupported", &text);
        }
        for (filter, text) in [
            ("driveType", "Value must be a boolean expression"),
            ("((", "parse error. Mismatched parenthesis."),
        ] {
            let answer = server.get(&format!("/graph/v1.0/drives?$filter={filter}")).await;
            is_error(&answer, 400, "invalidRequest", text);
        }
    })
    .await;
}

#[tokio::test]
async fn there_is_no_paging() {
    on_each(async |server| {
        let ids = [server.space().await, server.space().await, server.space().await];
        for query in ["$top=1", "$top=1&$skip=1", "$count=true", "$select=id", "$search=nobody"] {
            let drives = server.list(&format!("/graph/v1.0/drives?{query}")).await;
            for id in &ids {
                assert!(drives.iter().any(|drive| drive["id"] == id.as_str()), "{query}");
            }
        }
        for name in ["$skiptoken", "$orderBy", "foo"] {
            let answer = server.get(&format!("/graph/v1.0/drives?{name}=name")).await;
            let text = format!("Query parameter '{name}' is not supported");
            is_error(&answer, 400, "invalidRequest", &format!("{text}. Cause: {text}"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_list_can_be_ordered_by_name_and_time_only() {
    on_each(async |server| {
        let run = unique("order");
        for name in ["b", "A", "c"] {
            server.create(json!({ "name": format!("{name}-{run}") })).await;
        }
        let names = async |order: &str| {
            let drives = server.list(&format!("{PROJECTS}&$orderby={order}")).await;
            let mut names: Vec<String> = drives.iter().map(|drive| text(drive, "/name")).collect();
            names.retain(|name| name.ends_with(&run));
            names.iter().map(|name| name[..1].to_owned()).collect::<String>()
        };
        assert_eq!(names("name").await, "Abc");
        assert_eq!(names("name desc").await, "cbA");
        assert_eq!(names("lastModifiedDateTime").await, "bAc");
        assert_eq!(names("lastModifiedDateTime desc").await, "cAb");
        let answer = server.get("/graph/v1.0/drives?$orderby=id").await;
        is_error(&answer, 400, "invalidRequest", "we do not support <id> as a order parameter");
    })
    .await;
}

#[tokio::test]
async fn the_own_personal_space_is_there_in_normal_operation() {
    on_each(async |server| {
        let own = server.get("/graph/v1.0/me/drive").await.must_be(200).json();
        assert_eq!(own["driveType"], "personal");
        assert!(server.lists("/graph/v1.0/me/drives", &id_of(&own)).await);
        assert!(own["root"].get("permissions").is_none(), "{own}");
    })
    .await;
}

/// Simulated only: the storage goes away.
#[tokio::test]
async fn without_its_storage_a_list_is_empty_and_a_space_not_found() {
    on_simulated(async |world| {
        let server = &world.server;
        let id = server.space().await;
        world.ocis.storage_away(true);
        assert!(server.list(PROJECTS).await.is_empty());
        let all = server.list("/graph/v1.0/drives").await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0]["driveType"], "virtual");
        is_error(&server.show(&id).await, 404, "itemNotFound", NO_DRIVE);
        // What tells it apart.
        is_error(&server.get("/graph/v1.0/me/drive").await, 404, "itemNotFound", NO_DRIVE);
        let personal = "/graph/v1.0/me/drives?$filter=driveType eq 'personal'";
        assert!(server.list(personal).await.is_empty());
        server.get("/graph/v1.0/me").await.must_be(200);

        let posted = server.post("/graph/v1.0/drives", &json!({ "name": "x" })).await.must_be(500);
        let message = text(&posted.json(), "/error/message");
        assert!(message.starts_with("gateway could not get storage provider client:"), "{message}");
        for answer in [server.patch(&id, &json!({})).await, server.disable(&id).await] {
            is_error(&answer, 500, "generalException", "grpc error");
        }
        world.ocis.storage_away(false);
        server.show(&id).await.must_be(200);
    })
    .await;
}

/// Simulated only: thousands of spaces.
#[tokio::test]
async fn a_long_list_comes_whole_in_one_answer() {
    on_simulated(async |world| {
        for number in 0..5000 {
            world
                .ocis
                .plant(json!({ "name": format!("space {number}"), "description": "d".repeat(99) }));
        }
        let answer = world.server.get(PROJECTS).await.must_be(200);
        assert!(answer.header("content-length").is_none());
        let drives = answer.json()["value"].as_array().unwrap().clone();
        let ids: std::collections::BTreeSet<String> = drives.iter().map(id_of).collect();
        assert_eq!((drives.len(), ids.len()), (5000, 5000));
        // A short one has a length.
        assert!(world.server.get("/graph/v1.0/me/drives").await.header("content-length").is_some());
    })
    .await;
}
