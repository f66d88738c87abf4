//! `crossover why`, over rows as the recorders and the comparator write them.

use serde_json::{Value, json};

use super::{Asked, id};

/// An interaction that Temporal executed in two attempts and Postgres rehearsed, with one divergence.
async fn told() -> Asked {
    let asked = Asked::new().await;
    asked.pins("a", "shadow", 1).await;
    let id = id("a", "k1");
    asked.judged("a", (1, 1), "diverged", &["late"]).await;
    asked.sql(&format!(
        "update crossover.pins set created_at = '2026-01-01 00:00:00Z', run_at = '2026-01-01 00:00:01Z', outcome = 'succeeded',
            ended_at = '2026-01-01 00:00:09Z', attempts = 2 where id = '{id}';
         insert into crossover.payloads (id, created_at, payload, policy) values ('{id}', '2026-01-01 00:00:00Z', '{{\"secret\": 7}}', '{{}}');
         insert into crossover.sightings (seen_at, side_at, due_at, id, observer, epoch, attempt, rehearsal, side, what, retry_ms, note, payload_hash)
         values ('2026-01-01 00:00:00.6Z', '2026-01-01 00:00:00.5Z', null, '{id}', gen_random_uuid(), 1, 0, false, 'temporal', 'delivered', null, null, null),
            ('2026-01-01 00:00:01.2Z', '2026-01-01 00:00:01.1Z', '2026-01-01 00:00:01Z', '{id}', gen_random_uuid(), 1, 1, false, 'temporal', 'dequeued', null, null, sha256('1')),
            ('2026-01-01 00:00:03.2Z', '2026-01-01 00:00:03Z', null, '{id}', gen_random_uuid(), 1, 1, false, 'temporal', 'ended', 500, 'HTTP 503', null),
            ('2026-01-01 00:00:04.2Z', '2026-01-01 00:00:04Z', '2026-01-01 00:00:01Z', '{id}', gen_random_uuid(), 1, 1, true, 'postgres', 'dequeued', null, null, sha256('2'));
         insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side, outcome, result, retry_ms, error)
         values ('{id}', '2026-01-01 00:00:01Z', '2026-01-01 00:00:01.1Z', '2026-01-01 00:00:03Z', 1, 1, false, 'temporal', 'failed', null, 500, 'HTTP 503'),
            ('{id}', '2026-01-01 00:00:03.5Z', '2026-01-01 00:00:03.6Z', '2026-01-01 00:00:09Z', 1, 2, false, 'temporal', 'succeeded', '{{\"token\": 8}}', null, null)",
    ))
    .await;
    asked
}

#[tokio::test]
async fn the_story_is_in_the_order_of_time_with_both_clocks_and_what_a_divergence_means() {
    let asked = told().await;
    let (story, code) = asked.json(&["why", "--account", "a", "--key", "k1"]).await;
    assert_eq!((code, &story["id"]), (0, &json!(id("a", "k1"))));
    let events: Vec<(Value, String)> = story["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["side"].clone(), event["what"].as_str().unwrap().to_owned()))
        .collect();
    let wanted = [
        (Value::Null, "pinned in stage shadow by flags file:1: temporal executes, postgres rehearses"),
        (json!("temporal"), "Temporal has the copy"),
        (Value::Null, "due"),
        (json!("temporal"), "execution 1.1 began, 100 ms after it was due"),
        (json!("temporal"), "execution 1.1 ended: failed, another follows after 500 ms: HTTP 503"),
        (json!("temporal"), "execution 1.2 began, 100 ms after it was due"),
        (json!("postgres"), "rehearsal 1.1 began, 3000 ms after it was due; IT READ ANOTHER PAYLOAD"),
        (json!("temporal"), "execution 1.2 ended: succeeded"),
        (Value::Null, "ended: succeeded after 2 attempts"),
        (Value::Null, "judged: diverged"),
    ];
    assert_eq!(events, wanted.map(|(side, what)| (side, what.to_owned())));
    assert_eq!(story["timeline"][1]["seen_at"], "2026-01-01T00:00:00.600Z");
    assert_eq!(story["waits_for"], Value::Null);
    let found = &story["observation"]["divergences"][0];
    assert_eq!((&found["class"], &found["detail"]), (&json!("late"), &json!("seen: late")));
    assert!(found["means"].as_str().unwrap().contains("later than it should"));
    let text = asked.text(&["why", &id("a", "k1").to_string()]).await;
    for word in ["+100 ms", "Verdict: diverged", "docs/divergences.md#late", "SHA-256", "13 bytes"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
}

#[tokio::test]
async fn payloads_and_results_are_printed_only_when_asked_for() {
    let asked = told().await;
    let id = id("a", "k1").to_string();
    for printed in [asked.text(&["why", &id]).await, asked.json(&["why", &id]).await.0.to_string()] {
        assert!(!printed.contains("secret") && !printed.contains("token"), "{printed}");
    }
    let (story, _) = asked.json(&["why", &id, "--payload"]).await;
    assert_eq!(story["contents"]["payload"], json!({ "secret": 7 }));
    assert_eq!(story["contents"]["results"][0]["document"], json!({ "token": 8 }));
    let text = asked.text(&["why", &id, "--payload"]).await;
    assert!(
        text.contains(r#"Payload: {"secret": 7}"#) && text.contains(r#"Result of attempt 2 on temporal: {"token": 8}"#),
        "{text}"
    );
}

#[tokio::test]
async fn an_unknown_id_says_so_and_fails() {
    let asked = Asked::new().await;
    let unknown = id("nobody", "nothing").to_string();
    let (said, code) = asked.json(&["why", &unknown]).await;
    let error = said["error"].as_str().unwrap();
    assert!(code == 1 && error.contains(&unknown) && error.contains("no pin"), "{said}");
    let (said, _) = asked.json(&["why", "--account", "nobody", "--key", "nothing"]).await;
    assert!(said["error"].as_str().unwrap().contains("account nobody was never seen"), "{said}");
    assert_eq!(asked.run(&["why"]).await.status.code(), Some(2));
    assert_eq!(asked.run(&["why", "--account", "a"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn what_sql_accepted_waits_for_a_router_and_what_only_one_side_saw_is_told_too() {
    let asked = Asked::new().await;
    asked.sql("select crossover.enqueue('a', 'sync', '{\"n\": 1}', key => 'one')").await;
    let (story, _) = asked.json(&["why", "--account", "a", "--key", "one"]).await;
    assert_eq!((&story["standing"]["state"], &story["pin"]), (&json!("accepted"), &Value::Null));
    assert_eq!(story["waits_for"], "a router to pin it");
    let stray = id("a", "stray");
    asked
        .sql(&format!(
            "insert into crossover.sightings (side_at, id, observer, epoch, attempt, rehearsal, side, what)
         values (now(), '{stray}', gen_random_uuid(), 1, 1, false, 'postgres', 'dequeued')"
        ))
        .await;
    let (story, code) = asked.json(&["why", &stray.to_string()]).await;
    assert_eq!(
        (code, &story["standing"], &story["timeline"][0]["what"]),
        (0, &Value::Null, &json!("execution 1.1 began"))
    );
}

/// The decision that put the account where it was pinned, and what was decided while it ran; no other kind's, and nothing after.
#[tokio::test]
async fn the_decisions_before_the_pin_and_until_the_end_are_told_with_who_and_why() {
    let asked = told().await;
    asked
        .sql(
            "insert into crossover.decisions (at, account, kind, from_stage, to_stage, revision, source, router, who, why)
             values ('2025-12-30Z', 'a', null, 'off', 'live', 'file:0', 'file', gen_random_uuid(), 'eve', 'too old'),
                ('2025-12-31Z', 'a', null, 'live', 'shadow', 'file:1', 'file', gen_random_uuid(), 'ana', 'it was slow'),
                ('2025-12-31 01:00Z', 'a', 'webhook', 'live', 'off', 'file:1', 'file', gen_random_uuid(), 'eve', 'another kind'),
                ('2025-12-31 02:00Z', 'b', null, 'live', 'off', 'file:1', 'file', gen_random_uuid(), 'eve', 'another account'),
                ('2026-01-01 00:00:05Z', 'a', 'sync', 'shadow', 'live', 'override:7', 'override', gen_random_uuid(), 'bob', 'flags away'),
                ('2026-01-01 00:00:10Z', 'a', null, 'shadow', 'off', 'file:2', 'file', gen_random_uuid(), 'eve', 'after its end')",
        )
        .await;
    let id = id("a", "k1").to_string();
    let (story, _) = asked.json(&["why", &id]).await;
    let of = |d: &Value| ["who", "why", "from", "to", "source"].map(|field| d[field].as_str().unwrap().to_owned());
    let decisions: Vec<_> = story["decisions"].as_array().unwrap().iter().map(of).collect();
    let wanted =
        [["ana", "it was slow", "live", "shadow", "file"], ["bob", "flags away", "shadow", "live", "override"]];
    assert_eq!(decisions, wanted.map(|row| row.map(str::to_owned)), "{story:#}");
    assert_eq!(story["decisions"][1]["at"], "2026-01-01T00:00:05Z");
    let text = asked.text(&["why", &id]).await;
    for word in ["DECIDED", "2025-12-31 00:00:00.000", "it was slow", "flags away", "override:7"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert!(!text.contains("eve"), "{text}");
}

/// A router pins by new flags at once, and writes the decision down beside its work.
#[tokio::test]
async fn a_decision_written_just_after_a_pin_by_its_flags_is_told_though_the_work_had_ended_by_then() {
    let asked = told().await;
    asked
        .sql(
            "insert into crossover.decisions (at, account, kind, from_stage, to_stage, revision, source, router)
             values ('2026-01-01 00:00:11Z', 'a', null, 'off', 'shadow', 'file:1', 'file', gen_random_uuid())",
        )
        .await;
    let (story, _) = asked.json(&["why", "--account", "a", "--key", "k1"]).await;
    assert_eq!(
        (&story["decisions"][0]["to"], &story["decisions"][0]["who"]),
        (&json!("shadow"), &Value::Null),
        "{story:#}"
    );
}
