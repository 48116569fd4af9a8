//! Pages of a query, and the order in which they can be trusted.

use serde_json::{Value, json};

use super::{Server, ids, on_each};
use crate::support::unique;

/// Twelve domains with one word in common, oldest first.
async fn twelve(server: &Server) -> (String, Vec<String>) {
    let word = unique("page").replace('-', "");
    let mut made = Vec::new();
    for index in 0..12 {
        let name = server.name(&format!("p{index:02}"));
        made.push(server.made(&name, Some(&word)).await);
    }
    (word, made)
}

fn reversed(ids: &[String]) -> Vec<String> {
    ids.iter().rev().cloned().collect()
}

#[tokio::test]
async fn pages_in_the_default_order_repeat_some_domains_and_miss_others() {
    on_each(async |server| {
        let (word, made) = twelve(server).await;
        let page = async |more: Value| {
            let mut arguments = json!({ "filter": { "text": word } });
            arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            server.ok("x:Domain/query", arguments).await
        };
        assert_eq!(ids(&page(json!({})).await), reversed(&made));
        // Without a position the oldest come, …
        let oldest = page(json!({ "limit": 5 })).await;
        assert_eq!(ids(&oldest), reversed(&made[..5]));
        assert_eq!(oldest.get("limit"), None);
        // … with position 0 the newest, …
        let newest = page(json!({ "limit": 5, "position": 0 })).await;
        assert_eq!(ids(&newest), reversed(&made[7..]));
        assert_eq!(newest["limit"], 5);
        // … and further pages count from the oldest, and say that they are at 0.
        for (position, expected) in [(5, &made[5..10]), (10, &made[10..]), (100, &made[..0])] {
            let next = page(json!({ "limit": 5, "position": position })).await;
            assert_eq!((ids(&next), &next["position"]), (reversed(expected), &json!(0)));
        }
        let counted = page(json!({ "limit": 5, "position": 5, "calculateTotal": true })).await;
        assert_eq!(ids(&counted), reversed(&made[2..7]));
        assert_eq!((&counted["position"], &counted["total"]), (&json!(5), &json!(12)));
        let last = page(json!({ "position": -3 })).await;
        assert_eq!((ids(&last), &last["position"]), (reversed(&made[..3]), &json!(9)));
        assert_eq!(ids(&page(json!({ "limit": 0 })).await), made[..1]);
    })
    .await;
}

#[tokio::test]
async fn pages_in_the_order_of_names_are_safe() {
    on_each(async |server| {
        let (word, made) = twelve(server).await;
        let sort = json!([{ "property": "name", "isAscending": true }]);
        let page = async |position: usize| {
            let arguments = json!({
                "filter": { "text": word }, "sort": sort, "limit": 5, "position": position,
            });
            server.ok("x:Domain/query", arguments).await
        };
        let mut seen = Vec::new();
        for position in [0, 5, 10] {
            let answer = page(position).await;
            assert_eq!((&answer["position"], &answer["limit"]), (&json!(position), &json!(5)));
            seen.extend(ids(&answer));
        }
        assert_eq!(seen, made);
        assert!(ids(&page(15).await).is_empty());
        let down = json!([{ "property": "name", "isAscending": false }]);
        let arguments = json!({ "filter": { "text": word }, "sort": down, "limit": 3 });
        assert_eq!(ids(&server.ok("x:Domain/query", arguments).await), reversed(&made[9..]));
        // A limit that cuts nothing is not told.
        let arguments = json!({ "filter": { "text": word }, "sort": sort, "limit": 50 });
        assert_eq!(server.ok("x:Domain/query", arguments).await.get("limit"), None);
    })
    .await;
}

#[tokio::test]
async fn an_anchor_is_left_out_in_the_order_of_ids_unless_an_offset_is_given() {
    on_each(async |server| {
        let (word, made) = twelve(server).await;
        let by = |property: &str| json!([{ "property": property, "isAscending": true }]);
        let query = async |more: Value| {
            let mut arguments = json!({ "filter": { "text": word }, "limit": 5 });
            arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            server.call("x:Domain/query", arguments).await
        };
        let hasty = query(json!({ "sort": by("id"), "anchor": made[4] })).await.unwrap();
        assert_eq!((ids(&hasty), &hasty["position"]), (made[5..10].to_vec(), &json!(0)));
        for property in ["id", "name"] {
            let arguments = json!({ "sort": by(property), "anchor": made[4], "anchorOffset": 1 });
            let exact = query(arguments).await.unwrap();
            assert_eq!((ids(&exact), &exact["position"]), (made[5..10].to_vec(), &json!(5)));
        }
        let lost = query(json!({ "sort": by("name"), "anchor": "zzzzzzzz" })).await.unwrap_err();
        assert_eq!(lost["type"], "anchorNotFound");
    })
    .await;
}
