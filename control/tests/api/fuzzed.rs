//! The operators' interface, asked by a fuzzer of another make that knows nothing but its description.

use std::process::Command;

use drophammer_lab::tools;
use serde_json::{Value, json};

use super::rig::*;

#[test]
fn whatever_is_asked_is_answered_as_described() {
    // Which engine is behind it makes no difference to what is fuzzed.
    if env!("CARGO_CRATE_NAME") == "api_on_etcd" {
        return;
    }
    let schemathesis = tools::schemathesis().expect("is there");
    let rig = Rig::new();
    rig.waiting(1);
    let put = |path: &str, body: Value| rig.ask(reqwest::Method::PUT, path, &body, &[]).expect("declares");
    put("/v1/tenants/t", json!({"name": "t"}));
    put("/v1/projects/p", json!({"name": "p", "tenant": "t"}));
    let server = format!("http://{}", rig.operators());
    let fuzz = Command::new(schemathesis)
        .args(["run", &format!("{server}/v1/openapi.json"), "--url", &server])
        .args(["--header", &format!("Authorization: Bearer {}", rig.token("admin"))])
        // What has no end can't be compared with anything.
        .args(["--exclude-path", "/v1/watch", "--phases", "coverage,fuzzing", "--max-examples", "25"])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        .args(["--no-color", "--seed", "1"])
        .current_dir(rig.path())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&fuzz.stdout);
    assert!(fuzz.status.success(), "{said}{}", String::from_utf8_lossy(&fuzz.stderr));
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: ")?.parse::<u32>().ok());
    assert!(tested.is_some_and(|operations| operations >= 50), "{said}");
}
