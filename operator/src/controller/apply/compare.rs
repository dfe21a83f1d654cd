//! Comparing an object as it is with one as it should be.

use serde_json::{Map, Value};

/// Whether `live` has everything that `want` has. More in it is others' business.
pub(super) fn contains(live: &Value, want: &Value) -> bool {
    match (live, want) {
        (Value::Object(live), Value::Object(want)) => want.iter().all(|(key, want)| {
            live.get(key).map_or_else(|| is_empty(want), |live| contains(live, want))
        }),
        (Value::Array(live), Value::Array(want)) => {
            live.len() == want.len() && live.iter().zip(want).all(|(l, w)| contains(l, w))
        }
        (live, want) => live == want,
    }
}

/// What the API server leaves out when it writes an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The values of `live` at the places that `want` speaks of.
pub(super) fn project(want: &Value, live: &Value) -> Value {
    match (want, live) {
        (Value::Object(want), Value::Object(live)) => {
            let fields = want.iter().map(|(key, want)| {
                (key.clone(), project(want, live.get(key).unwrap_or(&Value::Null)))
            });
            Value::Object(fields.collect::<Map<_, _>>())
        }
        (Value::Array(want), Value::Array(live)) if want.len() == live.len() => {
            want.iter().zip(live).map(|(w, l)| project(w, l)).collect()
        }
        (_, live) => live.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_than_desired_is_fine_and_less_is_not() {
        let want = json!({"a": {"b": 1}, "list": [{"n": "x"}], "none": {}, "nothing": null});
        assert!(contains(
            &json!({"a": {"b": 1, "c": 2}, "list": [{"n": "x", "more": 1}], "other": 1}),
            &want
        ));
        for less in [
            json!({"a": {"b": 2}, "list": [{"n": "x"}]}),
            json!({"a": {}, "list": [{"n": "x"}]}),
            json!({"a": {"b": 1}, "list": []}),
            json!({"a": {"b": 1}, "list": [{"n": "x"}, {"n": "y"}]}),
        ] {
            assert!(!contains(&less, &want), "{less}");
        }
    }

    #[test]
    fn what_the_server_writes_its_own_way_is_remembered() {
        let want = json!({"cpu": "0.5", "list": [{"n": "x"}]});
        let live = json!({"cpu": "500m", "list": [{"n": "x", "more": 1}], "other": 1});
        let learned = project(&want, &live);
        assert_eq!(learned, json!({"cpu": "500m", "list": [{"n": "x"}]}));
        assert_ne!(project(&want, &json!({"cpu": "1", "list": [{"n": "x"}]})), learned);
    }
}
