//! What a person does on Unleash's pages.

use crossover::provision::Unleash;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Whoever may do everything with an Unleash.
pub struct Admin<'a>(pub &'a Unleash);

impl Admin<'_> {
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}/api/admin{path}", self.0.url);
        let request = reqwest::Client::new().request(method, url).header("Authorization", &self.0.admin_token);
        let answer = body.into_iter().fold(request, |request, body| request.json(&body)).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn make(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, said) = self.ask(method, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {status} {said}");
        said
    }

    /// The path of a flag in the environment that routers follow.
    pub fn flag(&self, name: &str) -> String {
        format!("/projects/{}/features/{name}/environments/{}", self.0.project, self.0.environment)
    }

    /// Puts these accounts, and nobody else, on a flag.
    pub async fn list(&self, flag: &str, accounts: &[&str]) {
        let path = format!("{}/strategies", self.flag(flag));
        let (_, strategies) = self.ask(Method::GET, &path, None).await;
        let path = format!("{path}/{}", strategies[0]["id"].as_str().unwrap());
        let values: Vec<_> = ["crossover:nobody"].iter().chain(accounts).collect();
        self.make(Method::PATCH, &path, json!([{ "op": "replace", "path": "/constraints/0/values", "value": values }]))
            .await;
    }

    pub async fn switch(&self, flag: &str, on: bool) {
        let path = format!("{}/{}", self.flag(flag), if on { "on" } else { "off" });
        self.make(Method::POST, &path, json!({})).await;
    }

    pub async fn archive(&self, flag: &str) {
        let path = format!("/projects/{}/features/{flag}", self.0.project);
        let (status, said) = self.ask(Method::DELETE, &path, None).await;
        assert!(status.is_success(), "{said}");
    }

    pub async fn revive(&self, flag: &str) {
        self.make(Method::POST, &format!("/projects/{}/revive", self.0.project), json!({ "features": [flag] })).await;
    }
}
