//! `crossover status`.

use serde_json::{Value, json};

use super::{Asked, id};

async fn with_flags() -> Asked {
    let asked = Asked::new().await;
    let flags =
        crossover::flags::DocumentBuilder::default().everybody(crossover::interaction::Stage::Live).build().unwrap();
    std::fs::create_dir(asked.folder.path().join("flags")).unwrap();
    flags.write_to(&asked.folder.path().join("flags/crossover.json")).unwrap();
    asked
}

#[tokio::test]
async fn an_empty_bridge_says_what_is_missing_and_fails_at_nothing() {
    let asked = Asked::new().await;
    let (status, code) = asked.json(&["status"]).await;
    assert_eq!((code, &status["accounts"], &status["blocked"]), (0, &json!([]), &json!([])));
    assert!(status["flags"]["error"].is_string() && status["temporal"]["error"].is_string(), "{status}");
    let text = asked.text(&["status"]).await;
    for word in ["can't be followed", "none has ever run", "in the last hour: none"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
}

#[tokio::test]
async fn accounts_are_counted_by_stage_and_the_heaviest_are_listed() {
    let asked = with_flags().await;
    asked
        .sql(
            "insert into crossover.accounts (account, armed_at, state) select 'a' || n, now(), 'armed' from generate_series(1, 60) n;
        insert into crossover.accounts (account, unpinned_at) values ('old', now())",
        )
        .await;
    asked.pins("old", "shadow", 2).await;
    asked.pins("a7", "live", 3).await;
    let (status, _) = asked.json(&["status", "--limit", "2"]).await;
    let summary = &status["summary"];
    assert_eq!(summary["by_stage"], json!({ "live": 60, "shadow": 1 }));
    assert_eq!((&summary["armed"], &summary["unpinned"], &summary["kept_back"]), (&json!(60), &json!(1), &json!(1)));
    let shown: Vec<&Value> = status["accounts"].as_array().unwrap().iter().map(|line| &line["account"]).collect();
    assert_eq!((shown, &status["more"]), (vec![&json!("a7"), &json!("old")], &json!(59)));
    let text = asked.text(&["status", "--limit", "2"]).await;
    assert!(text.contains("61: 1 shadow, 60 live") && text.contains("… and 59 more"), "{text}");
}

#[tokio::test]
async fn what_is_blocked_is_listed_with_whom_it_waits_for() {
    let asked = with_flags().await;
    asked.comparator().await;
    asked.pins("held", "live", 1).await;
    asked.sql("update crossover.pins set conflict = 'another payload' where account = 'held'").await;
    asked.pins("late", "shadow", 1).await;
    asked.sql(&format!(
        "insert into crossover.outbox (id, due_at, epoch, behind, tries, last_error) values ('{}', now(), 1, '{{}}', 3, 'it does not answer')",
        id("late", "k1")
    )).await;
    asked
        .sql(
            "select crossover.enqueue('sql', 'sync', '1', key => 'x');
        update crossover.intake set refused_at = now(), reason = 'policy.backoff.max_ms: no'",
        )
        .await;
    asked.pins("parked", "live", 1).await;
    asked
        .sql(&format!(
            "insert into crossover.parked (id, epoch, attempt, rank, side, cause, grp) values ('{}', 1, 1, 0, 'postgres', 'worker', 'g')",
            id("parked", "k1")
        ))
        .await;
    let series = uuid::Uuid::new_v4();
    asked.pins("behind", "live", 4).await;
    asked.sql(&format!(
        "insert into crossover.series (series_id, last_no, head_no, account, kind, series) values ('{series}', 4, 1, 'behind', 'sync', 's');
         update crossover.pins set series_id = '{series}', series_no = substr(key, 2)::bigint, series = 's' where account = 'behind'"
    )).await;
    asked.judged("late", (1, 1), "diverged", &["missing", "late"]).await;
    let (status, _) = asked.json(&["status"]).await;
    let blocked = status["blocked"].as_array().unwrap();
    let of = |what: &str| {
        blocked
            .iter()
            .find(|b| b["what"].as_str().unwrap().starts_with(what))
            .unwrap_or_else(|| panic!("{what}: {status}"))
    };
    assert_eq!(of("owner conflict")["next"], format!("crossover why {}", id("held", "k1")));
    assert_eq!(of("not delivered")["on_whom"], "Temporal: it does not answer");
    assert_eq!(of("unknown outcome")["next"], format!("crossover resolve {} --as ANSWER", id("parked", "k1")));
    assert_eq!(of("unknown outcome")["on_whom"], "somebody who says what came of it");
    assert_eq!(of("refused from SQL")["on_whom"], "its caller: policy.backoff.max_ms: no");
    let series = of("series s of behind/sync");
    assert_eq!((&series["count"], &series["on_whom"]), (&json!(3), &json!("its number 1, owner postgres")));
    assert_eq!(blocked.len(), 5, "{status}");
    let comparison = &status["comparison"];
    assert_eq!(comparison["last_hour"], json!({ "late": 1, "missing": 1 }));
    assert_eq!(status["intake"]["refused"], 1);
    let text = asked.text(&["status"]).await;
    for word in ["BLOCKED", "1 late, 1 missing; see crossover report", "0 interactions to look at again"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
}

/// A hundred thousand accounts, three in ten of them with unended work.
#[tokio::test]
async fn at_a_hundred_thousand_accounts_the_answer_is_short_and_soon() {
    let asked = with_flags().await;
    asked.sql("insert into crossover.accounts (account, armed_at, state) select 'a' || n, now(), 'armed' from generate_series(1, 100000) n;
        insert into crossover.pins (id, run_at, weight, on_temporal, on_postgres, stage, owner, account, kind, key, grp, flag_revision, payload_hash)
        select crossover.interaction_id('a' || n, 'k'), now(), 100, true, true, 'live', 'postgres', 'a' || n, 'sync', 'k', 'default', 'file:1', sha256('1')
        from generate_series(1, 30000) n;
        analyze crossover.pins").await;
    let began = std::time::Instant::now();
    let text = asked.text(&["status"]).await;
    println!("100,000 accounts took {:?} with a debug build", began.elapsed());
    assert!(text.lines().count() < 80 && text.contains("100000: 100000 live"), "{text}");
}
