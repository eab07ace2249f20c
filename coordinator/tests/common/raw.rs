//! Calls by their descriptors, in bytes: so a test can make every call that there is, and one that is added later is made too.

use berth_proto::DESCRIPTORS;
use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use super::Bearer;

/// One call of the contract.
#[derive(Clone, Debug)]
pub struct Call {
    pub service: String,
    pub method: String,
    /// Fields of the request that name something by its id: where each is, and what it is called.
    pub ids: Vec<(Vec<u32>, String)>,
    package: String,
}

/// All calls of all services.
pub fn calls() -> Vec<Call> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut calls = Vec::new();
    for file in set.file.iter().filter(|file| file.package() == "berth.v1") {
        for service in &file.service {
            for method in &service.method {
                let input = message(&set, method.input_type());
                let mut ids = Vec::new();
                named(&set, input, &mut Vec::new(), &mut ids);
                calls.push(Call {
                    service: service.name().to_owned(),
                    method: method.name().to_owned(),
                    ids,
                    package: file.package().to_owned(),
                });
            }
        }
    }
    calls
}

fn message<'a>(set: &'a FileDescriptorSet, name: &str) -> &'a DescriptorProto {
    let of = |file: &'a prost_types::FileDescriptorProto| {
        let prefix = format!(".{}.", file.package());
        file.message_type.iter().find(move |message| name == format!("{prefix}{}", message.name()))
    };
    set.file.iter().find_map(of).unwrap_or_else(|| panic!("no message {name}"))
}

fn named(
    set: &FileDescriptorSet,
    of: &DescriptorProto,
    at: &mut Vec<u32>,
    ids: &mut Vec<(Vec<u32>, String)>,
) {
    for field in &of.field {
        at.push(field.number() as u32);
        if field.r#type() == Type::String
            && ["session_id", "checkpoint_id", "task_id"].contains(&field.name())
        {
            ids.push((at.clone(), field.name().to_owned()));
        }
        // One level down: the header of an upload.
        let ours = field.r#type() == Type::Message && field.type_name().starts_with(".berth.v1.");
        let plain = field.type_name().matches('.').count() == 3;
        if at.len() == 1 && ours && plain {
            named(set, message(set, field.type_name()), at, ids);
        }
        at.pop();
    }
}

/// A string at a place in a message.
pub fn string_at(path: &[u32], value: &str) -> Vec<u8> {
    let inner = match path {
        [_] => value.as_bytes().to_vec(),
        [_, rest @ ..] => string_at(rest, value),
        [] => return Vec::new(),
    };
    let mut bytes = Vec::new();
    prost::encoding::encode_key(path[0], prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
    bytes.extend_from_slice(&inner);
    bytes
}

impl Call {
    /// Whether the coordinator serves it. The others are between worker and agent, and on data connections.
    pub fn is_mounted(&self) -> bool {
        !["AgentService", "WorkerDataService"].contains(&self.service.as_str())
    }

    /// Makes it with one message: the first of its answer, if any.
    pub async fn make(
        &self,
        channel: &Channel,
        token: Option<&Bearer>,
        body: Vec<u8>,
    ) -> Result<Option<Bytes>, Status> {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(futures::stream::iter([Bytes::from(body)]));
        if let Some(Bearer(token)) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let path = format!("/{}.{}/{}", self.package, self.service, self.method);
        let mut answer = client.streaming(request, path.parse().unwrap(), Raw).await?.into_inner();
        answer.message().await
    }
}

#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
