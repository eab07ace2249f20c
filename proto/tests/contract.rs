//! Nobody who was built against the last release is broken by this one.
//!
//! `released/v1.txt` is the contract of the last release, one fact a line: each field with its number and type, each value
//! of an enum, each call. Within `berth.v1` all of it stays: clients, coordinator, workers and agents of two versions talk
//! to each other during an upgrade, and an agent lives as long as its session does. What is added is in the next release's
//! list. (Rejected: a tool that compares descriptors. It has rules for what may be left out, and here nothing may.)
//!
//! The run writes the contract as it is now to `target/tmp/contract.txt`; `scripts/release.sh record` takes that over.

use std::{collections::BTreeMap, fs, path::Path};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
    field_descriptor_proto::Label,
};

const RELEASED: &str = include_str!("../released/v1.txt");
const PACKAGE: &str = "berth.v1";

/// The contract as it is, one fact a line, sorted.
fn contract() -> Vec<String> {
    let set = FileDescriptorSet::decode(berth_proto::DESCRIPTORS).expect("descriptors");
    let mut lines = Vec::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        file.message_type.iter().for_each(|message| of_message(PACKAGE, message, &mut lines));
        file.enum_type.iter().for_each(|values| of_enum(PACKAGE, values, &mut lines));
        file.service.iter().for_each(|service| of_service(service, &mut lines));
    }
    lines.sort();
    lines
}

fn of_message(scope: &str, message: &DescriptorProto, lines: &mut Vec<String>) {
    let name = format!("{scope}.{}", message.name());
    lines.extend(message.field.iter().map(|field| of_field(&name, message, field)));
    message.nested_type.iter().for_each(|nested| of_message(&name, nested, lines));
    message.enum_type.iter().for_each(|values| of_enum(&name, values, lines));
}

fn of_field(message_name: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let kind = match field.type_name() {
        "" => field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        named => named.trim_start_matches('.').to_owned(),
    };
    let label = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (_, true) => "optional ",
        _ => "",
    };
    // An optional field is in a group of its own, which nobody sees.
    let group = field.oneof_index.filter(|_| !field.proto3_optional());
    let group = group.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
    let group = group.map(|group| format!(" in {}", group.name())).unwrap_or_default();
    format!("field {message_name}.{} = {} {label}{kind}{group}", field.name(), field.number())
}

fn of_enum(scope: &str, values: &EnumDescriptorProto, lines: &mut Vec<String>) {
    let name = format!("{scope}.{}", values.name());
    lines.extend(
        values.value.iter().map(|value| format!("value {name}.{} = {}", value.name(), value.number())),
    );
}

fn of_service(service: &ServiceDescriptorProto, lines: &mut Vec<String>) {
    for call in &service.method {
        let side = |streams: bool, name: &str| {
            format!("{}{}", if streams { "stream " } else { "" }, name.trim_start_matches('.'))
        };
        lines.push(format!(
            "call {PACKAGE}.{}.{} = ({}) -> ({})",
            service.name(),
            call.name(),
            side(call.client_streaming(), call.input_type()),
            side(call.server_streaming(), call.output_type()),
        ));
    }
}

fn key(line: &str) -> &str {
    line.split_once(" = ").map_or(line, |(key, _)| key)
}

/// What was released and is no more, in words.
fn broken(released: &str, now: &[String]) -> Vec<String> {
    let by_key: BTreeMap<&str, &str> = now.iter().map(|line| (key(line), line.as_str())).collect();
    let facts = released.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    facts
        .filter_map(|was| match by_key.get(key(was)) {
            Some(is) if *is == was => None,
            Some(is) => Some(format!("{was}\n    is now: {is}")),
            None => Some(format!("{was}\n    is gone, or has another name")),
        })
        .collect()
}

#[test]
fn what_was_released_stays() {
    let now = contract();
    let text = format!("{}\n", now.join("\n"));
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("contract.txt"), text).expect("target/tmp");
    let broken = broken(RELEASED, &now);
    assert!(
        broken.is_empty(),
        "the contract of the last release (proto/released/v1.txt) is broken in {} places:\n{}\nhint: keep the field, value \
         or call, and add a new one with a new number beside it (docs/upgrading.md)",
        broken.len(),
        broken.join("\n")
    );
    assert!(RELEASED.lines().count() > 500, "the released contract is there");
}

/// Each kind of break, by a contract in which it was otherwise.
#[test]
fn a_break_is_named() {
    let now = contract();
    let was = |text: &str| broken(text, &now);
    let real = now.iter().find(|line| line.starts_with("field berth.v1.Session.id = ")).expect("a field");
    assert_eq!(was(&format!("# a comment\n\n{real}\n")), [] as [String; 0]);
    for (released, told) in [
        // Renumbered, another type, gone.
        ("field berth.v1.Session.id = 77 string", real.as_str()),
        ("field berth.v1.Session.id = 1 bytes", real.as_str()),
        ("field berth.v1.Session.colour = 78 string", "is gone"),
        ("value berth.v1.SessionState.SESSION_STATE_READY = 99", "is now: value berth.v1.SessionState"),
        ("value berth.v1.SessionState.SESSION_STATE_LOST = 9", "is gone"),
        ("call berth.v1.SessionService.Rename = (a) -> (b)", "is gone"),
        ("call berth.v1.SessionService.CreateSession = (a) -> (stream b)", "is now: call"),
    ] {
        let broken = was(released);
        assert_eq!(broken.len(), 1, "{released}: {broken:?}");
        assert!(broken[0].starts_with(released) && broken[0].contains(told), "{broken:?}");
    }
}
