//! The arrows of docs/task-states.md that no other test is about: each time-out with its own reason, of tasks and of pinned work.

use super::*;

/// Work of either engine.
#[derive(Clone, Copy, Debug)]
enum Engine {
    Tasks,
    Pins,
}

const BOTH: [Engine; 2] = [Engine::Tasks, Engine::Pins];

impl World {
    async fn put(&self, engine: Engine, policy: &Policy) -> Uuid {
        match engine {
            Engine::Tasks => self.enqueue(NewTask { policy: policy.clone(), ..task(json!(1)) }).await,
            Engine::Pins => {
                let interaction = Interaction {
                    account: ACCOUNT.to_owned(),
                    kind: "k".to_owned(),
                    key: Uuid::new_v4().to_string(),
                    key_made: false,
                    after: None,
                    exclusive: None,
                    payload: Payload::parse("1".to_owned()).unwrap(),
                    series: None,
                    group: None,
                    run_at: None,
                    priority: 0,
                    policy: policy.clone(),
                };
                let grace = Duration::ZERO;
                let request = PinRequest { interaction: &interaction, stage: Stage::Complete, revision: "test", grace };
                self.ledger.pin(request).await.unwrap().pin.id
            }
        }
    }

    async fn end_of(&self, engine: Engine, id: Uuid) -> Story {
        let look = async || match engine {
            Engine::Tasks => self.tasks.story(id).await.unwrap(),
            Engine::Pins => self.ledger.story(id).await.unwrap(),
        };
        until("it has ended", async || look().await.filter(|story| story.pin.outcome.is_some())).await
    }
}

fn patience(attempts: i32) -> Policy {
    let backoff = Backoff::Listed(Listed { delays_ms: vec![0] });
    Policy { max_attempts: attempts, backoff, ..Policy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_longer_than_its_start_time_out_expires_and_is_not_run() {
    for engine in BOTH {
        let here = World::new().await;
        let policy = Policy { start_timeout_ms: Some(50), ..patience(5) };
        let id = here.put(engine, &policy).await;
        tokio::time::sleep(Duration::from_millis(120)).await;
        let worker = here.worker(
            Handlers::new().register("k", |_: Value, _| async { unreachable!("it is not run") as Result<(), _> }),
        );
        let story = here.end_of(engine, id).await;
        worker.drain().await;
        assert_eq!(story.state, "expired", "{engine:?}");
        assert!(story.pin.reason.unwrap().contains("start_timeout_ms"), "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_beyond_its_time_out_is_cut_and_made_again_and_says_so() {
    for engine in BOTH {
        let here = World::new().await;
        let id = here.put(engine, &Policy { run_timeout_ms: 100, ..patience(2) }).await;
        let endless = Handlers::new().register("k", |_: Value, _| std::future::pending::<Result<(), HandlerError>>());
        let worker = here.worker(endless);
        let story = here.end_of(engine, id).await;
        worker.drain().await;
        assert_eq!((story.state.as_str(), story.attempts.len()), ("failed", 2), "{engine:?}");
        for attempt in &story.attempts {
            assert!(attempt.error.as_ref().unwrap().contains("run_timeout_ms"), "{engine:?} {attempt:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_falls_silent_is_cut_and_says_so() {
    for engine in BOTH {
        let here = World::new().await;
        let id = here.put(engine, &Policy { heartbeat_timeout_ms: Some(100), ..patience(1) }).await;
        let silent = Handlers::new().register("k", |_: Value, _| std::future::pending::<Result<(), HandlerError>>());
        let worker = here.worker(silent);
        let story = here.end_of(engine, id).await;
        worker.drain().await;
        assert_eq!(story.state, "failed", "{engine:?}");
        assert!(story.attempts[0].error.as_ref().unwrap().contains("heartbeat_timeout_ms"), "{engine:?} {story:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_end_with_their_time_as_well_as_with_their_number() {
    for engine in BOTH {
        let here = World::new().await;
        let backoff = Backoff::Listed(Listed { delays_ms: vec![100] });
        let policy = Policy { max_attempts: 1_000, give_up_after_ms: Some(350), backoff, ..Policy::default() };
        let id = here.put(engine, &policy).await;
        let failing =
            Handlers::new().register("k", |_: Value, _| async { Err::<(), _>(HandlerError::retryable("no luck")) });
        let worker = here.worker(failing);
        let story = here.end_of(engine, id).await;
        worker.drain().await;
        assert_eq!(story.state, "failed", "{engine:?}");
        assert!((1..=4).contains(&story.attempts.len()), "{engine:?} {}", story.attempts.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_fail_again_is_not_tried_again() {
    for engine in BOTH {
        let here = World::new().await;
        let id = here.put(engine, &patience(5)).await;
        let failing =
            Handlers::new().register("k", |_: Value, _| async { Err::<(), _>(HandlerError::permanent("never")) });
        let worker = here.worker(failing);
        let story = here.end_of(engine, id).await;
        worker.drain().await;
        assert_eq!((story.state.as_str(), story.attempts.len()), ("failed", 1), "{engine:?}");
        assert_eq!(story.pin.reason.as_deref(), Some("never"), "{engine:?}");
    }
}
