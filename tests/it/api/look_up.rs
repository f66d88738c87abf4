//! What a look-up says.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_says_what_the_comparator_makes_of_it() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    node.accepts(&world.request("one"), 201).await;
    let path = format!("/v1/interactions/{}", world.id("one"));
    let judged = until("it is judged", async || {
        let observation = node.get(&path).await.body["observation"].clone();
        observation["judged_at"].is_string().then_some(observation)
    })
    .await;
    assert_eq!(
        (&judged["verdict"], &judged["classes"], &judged["reason"]),
        (&json!("matched"), &json!([]), &Value::Null)
    );
    let diverged = "update crossover.observations set verdict = 'diverged', classes = '{late}', \
                    divergences = '[{\"class\": \"late\", \"side\": \"postgres\", \"detail\": \"by 9 s\"}]' where id = $1";
    sqlx::query(diverged).bind(world.id("one")).execute(world.ledger.pool()).await.unwrap();
    let found = node.get(&path).await.body["observation"].clone();
    assert_eq!((&found["verdict"], &found["classes"]), (&json!("diverged"), &json!(["late"])));
    assert_eq!(found["divergences"], json!([{ "class": "late", "side": "postgres", "detail": "by 9 s" }]));
    sqlx::query("delete from crossover.observations where id = $1")
        .bind(world.id("one"))
        .execute(world.ledger.pool())
        .await
        .unwrap();
    assert_eq!(node.get(&path).await.body.get("observation"), Some(&Value::Null), "there is none");
    node.stop().await;
}
