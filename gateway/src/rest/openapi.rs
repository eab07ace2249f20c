//! The OpenAPI document, made of the table of routes and of the very types that are read and written.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{
    problem::ErrorBody,
    routes::{Media, ROUTES, Route},
};

/// The document: OpenAPI 3.1, whose schemas are those of JSON Schema 2020-12.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    // What may be left out differs by whether a type is read or written.
    let (mut read, mut written) =
        (settings.clone().for_deserialize().into_generator(), settings.for_serialize().into_generator());
    let mut paths = Map::new();
    for route in ROUTES.iter() {
        let takes = route.takes.map(|shape| shape(&mut read).to_value());
        let answers = (route.answers)(&mut written).to_value();
        let error = written.subschema_for::<ErrorBody>().to_value();
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation(route, takes, answers, error);
    }
    let mut schemas = written.take_definitions(true);
    schemas.extend(read.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth",
            "version": berth_proto::VERSION,
            "description": "Sandboxes for agents, over plain HTTP. Times are RFC 3339 in UTC, spans are seconds, sizes are bytes.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "berth token create"}},
        },
    })
}

fn operation(route: &Route, takes: Option<Value>, answers: Value, error: Value) -> Value {
    let media = |schema: &Value| json!({"application/json": {"schema": schema}});
    let events = json!({"schema": {"type": "string"}});
    let content = match route.media {
        Media::Json => media(&answers),
        Media::Bytes => json!({"*/*": {"schema": answers}}),
        Media::Events => json!({"text/event-stream": events}),
        Media::JsonOrEvents => {
            json!({"application/json": {"schema": answers}, "text/event-stream": events})
        }
    };
    let mut operation =
        json!({"operationId": route.name, "summary": route.summary, "parameters": parameters(route)});
    if let Some(takes) = takes {
        operation["requestBody"] =
            json!({"required": route.media == Media::JsonOrEvents, "content": media(&takes)});
    }
    operation["responses"] = json!({
        "200": {"description": "What was asked for.", "content": content},
        "default": {"description": "What went wrong.", "content": media(&error)},
    });
    if route.path == "/v1/openapi.json" {
        operation["security"] = json!([]);
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let text = json!({"type": "string"});
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": text}));
    let in_query = route.query.iter().map(|parameter| {
        json!({"name": parameter.name, "in": "query", "description": parameter.about, "schema": text})
    });
    in_path.chain(in_query).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a schema refers to one that is not there.
    #[test]
    fn all_that_it_refers_to_is_in_it() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for rest in text.split("\"$ref\":\"").skip(1) {
            let name = rest.split('"').next().unwrap();
            let name = name.strip_prefix("#/components/schemas/").unwrap_or_else(|| panic!("{name}"));
            assert!(schemas.contains_key(name), "{name}");
        }
        assert_eq!(document["paths"].as_object().unwrap().len(), 20);
        assert!(schemas.contains_key("RunRequest") && schemas.contains_key("SessionView"), "{schemas:?}");
    }
}
