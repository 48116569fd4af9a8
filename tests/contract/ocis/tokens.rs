//! The way from a token to a user. What torments the issuer is done on simulated servers only.

use super::*;

#[tokio::test]
async fn tokens_that_are_not_the_issuers_are_refused_without_a_word() {
    on_simulated(async |world| {
        let issue = |claims: Value, signed| world.issuer.issue(claims, signed).unwrap();
        let base = json!({ "preferred_username": SERVICE });
        assert_eq!(world.status(&issue(base.clone(), Signed::Rightly)).await, 200);
        for signed in
            [Signed::WithAnotherKey, Signed::WithUnknownKid, Signed::Not, Signed::WithClientSecret]
        {
            says_nothing(&world.server.me(&issue(base.clone(), signed)).await, 401);
        }
        let now = now();
        for claims in [
            json!({ "iss": world.issuer.issuer_url("other") }),
            json!({ "iss": world.issuer.issuer_url("ocis").trim_end_matches('/') }),
            json!({ "exp": now - 1 }),
            json!({ "nbf": now + 60 }),
        ] {
            let mut claims = claims;
            claims["preferred_username"] = json!(SERVICE);
            says_nothing(&world.server.me(&issue(claims, Signed::Rightly)).await, 401);
        }
        // Neither audience nor scope is looked at, and a token need not end.
        for claims in [json!({ "aud": "foreign" }), json!({ "aud": null }), json!({ "exp": null })] {
            let mut claims = claims;
            claims["preferred_username"] = json!(SERVICE);
            assert_eq!(world.status(&issue(claims, Signed::Rightly)).await, 200);
        }
    })
    .await;
}

fn now() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[tokio::test]
async fn userinfo_is_asked_once_per_token() {
    on_simulated(async |world| {
        for _ in 0..3 {
            world.server.get("/graph/v1.0/me").await.must_be(200);
        }
        assert_eq!(world.userinfo_requests(), 1);
        world.status(&world.fresh_token()).await;
        assert_eq!(world.userinfo_requests(), 2);
    })
    .await;
}

#[tokio::test]
async fn with_the_issuer_down_only_known_tokens_go_on() {
    on_simulated(async |world| {
        world.server.get("/graph/v1.0/me").await.must_be(200);
        let unseen = world.fresh_token();
        world.issuer.server.stop().await;
        world.server.get("/graph/v1.0/me").await.must_be(200);
        says_nothing(&world.server.me(&unseen).await, 401);
        // After a restart none is known.
        world.ocis.forget_tokens();
        says_nothing(&world.server.get("/graph/v1.0/me").await, 401);
        world.issuer.server.restart().await.unwrap();
        assert_eq!(world.status(&unseen).await, 200);
        world.server.get("/graph/v1.0/me").await.must_be(200);
    })
    .await;
}

#[tokio::test]
async fn an_error_at_userinfo_is_a_401() {
    on_simulated(async |world| {
        let status = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
        let path = Some("/application/o/userinfo/".into());
        world.issuer.faults.add(Fault { path, answer: status, ..Fault::default() });
        says_nothing(&world.server.get("/graph/v1.0/me").await, 401);
        world.issuer.faults.clear();
        world.server.get("/graph/v1.0/me").await.must_be(200);
    })
    .await;
}

#[tokio::test]
async fn claims_that_make_no_user_are_an_empty_500() {
    on_simulated(async |world| {
        let status = async |claims: Value| {
            // A user who is not there yet, each time.
            let name = unique("svc");
            world.issuer.add_account(Account::new(&name, "x", &["tenant-provisioners"]));
            world.issuer.set_claims(&name, claims);
            let token = world.issuer.token("ocis", &name, SCOPE).unwrap();
            let answer = world.server.me(&token).await;
            if answer.status != 200 {
                says_nothing(&answer, 500);
            }
            answer.status
        };
        assert_eq!(status(json!({})).await, 200);
        for claims in [
            json!({ "groups": [] }),
            json!({ "groups": null }),
            json!({ "groups": ["another program's"] }),
            json!({ "groups": "tenant-provisioners" }),
            json!({ "name": null }),
            json!({ "email": "" }),
            json!({ "email": "no address" }),
            json!({ "preferred_username": null }),
            json!({ "preferred_username": "with a blank" }),
            json!({ "preferred_username": "5fdfbb86-2a61-4205-a403-a0381d574178" }),
        ] {
            assert_eq!(status(claims.clone()).await, 500, "{claims}");
        }
        let without_email = status(json!({ "email": null })).await;
        let expected = if world.server.flavour == Some(Flavour::Ocis31) { 500 } else { 200 };
        assert_eq!(without_email, expected);
        let name = unique("ak-x-client_credentials");
        assert_eq!(status(json!({ "preferred_username": name })).await, 200);
        let mail = format!("{}@example.test", unique("svc"));
        assert_eq!(status(json!({ "preferred_username": mail })).await, 200);
    })
    .await;
}

#[tokio::test]
async fn all_three_scopes_are_needed() {
    on_each(async |server| {
        for (scope, status) in [("profile email", 401), ("openid", 500), ("", 401), (SCOPE, 200)] {
            let token = server.login.token(scope).await;
            assert_eq!(server.me(&token).await.status, status, "{scope}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_was_tampered_with_is_refused_without_a_word() {
    on_each(async |server| {
        let (signed, signature) = server.token.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        // {"alg":"none"}
        let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}.");
        let reversed: String = signature.chars().rev().collect();
        for token in [unsigned, format!("{header}.{claims}.{reversed}"), format!("{header}.{claims}.")] {
            says_nothing(&server.me(&token).await, 401);
        }
    })
    .await;
}

#[tokio::test]
async fn leaving_the_group_stops_new_tokens_and_a_bad_one_stays_bad() {
    on_simulated(async |world| {
        world.server.get("/graph/v1.0/me").await.must_be(200);
        let unseen = world.fresh_token();
        world.issuer.set_groups(SERVICE, &[]);
        let name = unique("contract");
        world.server.create(json!({ "name": name })).await;
        says_nothing(&world.server.me(&unseen).await, 500);
        let fresh = world.fresh_token();
        says_nothing(&world.server.me(&fresh).await, 500);

        world.issuer.set_groups(SERVICE, &["tenant-provisioners"]);
        says_nothing(&world.server.me(&unseen).await, 500);
        says_nothing(&world.server.me(&fresh).await, 500);
        assert_eq!(world.status(&world.fresh_token()).await, 200);
    })
    .await;
}

#[tokio::test]
async fn a_deactivated_account_goes_on_with_known_tokens_only() {
    on_simulated(async |world| {
        world.server.get("/graph/v1.0/me").await.must_be(200);
        let unseen = world.fresh_token();
        world.issuer.set_active(SERVICE, false);
        world.server.get("/graph/v1.0/me").await.must_be(200);
        says_nothing(&world.server.me(&unseen).await, 401);
        world.issuer.set_active(SERVICE, true);
        says_nothing(&world.server.me(&unseen).await, 401);
        assert_eq!(world.status(&world.fresh_token()).await, 200);
        let revoked = world.fresh_token();
        world.issuer.revoke(&revoked);
        says_nothing(&world.server.me(&revoked).await, 401);
    })
    .await;
}

#[tokio::test]
async fn a_known_token_ends_when_it_expires() {
    on_simulated(async |world| {
        world.issuer.set_validity(Duration::from_secs(2));
        let token = world.fresh_token();
        assert_eq!(world.status(&token).await, 200);
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.status(&token).await == 200 {
            assert!(Instant::now() < deadline, "the token never ends");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        says_nothing(&world.server.me(&token).await, 401);
    })
    .await;
}

#[tokio::test]
async fn a_new_signing_key_is_found_unless_a_strange_kid_was_looked_for_just_before() {
    on_simulated(async |world| {
        world.server.get("/graph/v1.0/me").await.must_be(200);
        let unseen = world.fresh_token();
        world.issuer.rotate_key();
        world.server.get("/graph/v1.0/me").await.must_be(200);
        assert_eq!(world.status(&world.fresh_token()).await, 200);
        says_nothing(&world.server.me(&unseen).await, 401);

        // The keys were read again a moment ago: every caller can use that up.
        world.issuer.rotate_key();
        says_nothing(&world.server.me(&world.fresh_token()).await, 401);
    })
    .await;
    for flavour in Flavour::ALL {
        let options = Options { jwks_refresh_limit: Duration::from_millis(200), ..Options::default() };
        let world = World::with(flavour, options).await;
        world.server.get("/graph/v1.0/me").await.must_be(200);
        world.issuer.rotate_key();
        let made_up = world.issuer.issue(json!({}), Signed::WithUnknownKid).unwrap();
        assert_eq!(world.status(&made_up).await, 401);
        let token = world.fresh_token();
        let deadline = Instant::now() + Duration::from_secs(10);
        // It heals by waiting, with the same token.
        while world.status(&token).await != 200 {
            assert!(Instant::now() < deadline, "the new key is never found");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_provider_without_a_signing_key_makes_useless_tokens() {
    on_simulated(async |world| {
        world.issuer.remove_key();
        says_nothing(&world.server.me(&world.fresh_token()).await, 401);
        world.issuer.rotate_key();
        assert_eq!(world.status(&world.fresh_token()).await, 200);
    })
    .await;
}

#[tokio::test]
async fn a_token_from_the_future_is_refused_by_ocis_3_1_until_its_time_comes() {
    on_simulated(async |world| {
        world.issuer.set_skew(2);
        let token = world.fresh_token();
        let first = world.status(&token).await;
        if world.server.flavour != Some(Flavour::Ocis31) {
            assert_eq!(first, 200);
            return;
        }
        assert_eq!(first, 401);
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.status(&token).await != 200 {
            assert!(Instant::now() < deadline, "the same token never works");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    on_simulated(async |world| {
        // Behind by more than a token lives.
        world.issuer.set_skew(-601);
        says_nothing(&world.server.me(&world.fresh_token()).await, 401);
    })
    .await;
}

#[tokio::test]
async fn the_issuer_must_be_the_configured_one_byte_for_byte() {
    for flavour in Flavour::ALL {
        let world = World::new(flavour).await;
        let issuer = world.issuer.issuer_url("ocis");
        let without_slash = issuer.trim_end_matches('/');
        let ocis = Simulator::new(0, flavour, without_slash, Options::default()).await.unwrap();
        let request =
            http().get(format!("{}/graph/v1.0/me", ocis.url())).bearer_auth(&world.server.token);
        says_nothing(&Answer::to(request).await, 401);

        // A token fetched under another name of the same server.
        let account = service_account();
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "web"),
            ("client_secret", &account.client_secret()),
            ("scope", SCOPE),
        ];
        let fetch = async |host: String| {
            let request = http().post(world.issuer.token_url()).header("Host", host).form(&form);
            text(&Answer::to(request).await.must_be(200).json(), "/access_token")
        };
        let port = world.issuer.server.address.port();
        says_nothing(&world.server.me(&fetch(format!("localhost:{port}")).await).await, 401);
        assert_eq!(world.status(&fetch(format!("127.0.0.1:{port}")).await).await, 200);
    }
}

#[tokio::test]
async fn of_parallel_first_requests_some_fail_once() {
    for flavour in Flavour::ALL {
        let options = Options { autoprovision_race: true, ..Options::default() };
        let world = World::with(flavour, options).await;
        let requests = (0..8).map(|_| world.status(&world.server.token));
        let statuses = futures_util::future::join_all(requests).await;
        let failed = statuses.iter().filter(|status| **status == 500).count();
        assert!((1..=3).contains(&failed), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 500].contains(status)), "{statuses:?}");
        world.server.get("/graph/v1.0/me").await.must_be(200);
    }
}

#[tokio::test]
async fn an_unknown_user_is_a_401_where_none_are_made() {
    for flavour in Flavour::ALL {
        let options = Options { autoprovision: false, ..Options::default() };
        let world = World::with(flavour, options).await;
        says_nothing(&world.server.get("/graph/v1.0/me").await, 401);
        world.ocis.add_user(SERVICE);
        world.server.get("/graph/v1.0/me").await.must_be(200);
    }
}

#[tokio::test]
async fn a_removed_account_comes_back_as_another() {
    on_simulated(async |world| {
        let server = &world.server;
        let id = server.space().await;
        let before = server.get("/graph/v1.0/me").await.must_be(200).json();
        assert!(world.ocis.remove_user(SERVICE));
        let after = server.get("/graph/v1.0/me").await.must_be(200).json();
        assert_ne!(before["id"], after["id"]);
        assert!(server.lists(PROJECTS, &id).await);
        assert!(!server.lists("/graph/v1.0/me/drives", &id).await);
        if server.flavour == Some(Flavour::Ocis31) {
            server.show(&id).await.must_be(404);
        }
        server.disable(&id).await.must_be(204);
    })
    .await;
}

#[tokio::test]
async fn opencloud_makes_groups_of_the_claim_and_ocis_3_1_does_not() {
    on_simulated(async |world| {
        let me = world.server.get("/graph/v1.0/me?$expand=memberOf").await.must_be(200).json();
        let groups = me["memberOf"].as_array().unwrap();
        match world.server.flavour {
            Some(Flavour::Ocis31 | Flavour::Ocis5) => assert!(groups.is_empty(), "{me}"),
            _ => assert_eq!(groups[0]["displayName"], "tenant-provisioners"),
        }
    })
    .await;
}
