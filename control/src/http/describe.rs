//! What the operators' interface looks like, as OpenAPI 3.1: collected from the routes and handlers themselves.

use aide::axum::ApiRouter;
use aide::generate::GenContext;
use aide::openapi::{
    Components, HeaderStyle, Info, MediaType, OpenApi, Operation, Parameter, ParameterData, ParameterSchemaOrContent,
    PathStyle, ReferenceOr, RequestBody, Response, SchemaObject, SecurityScheme,
};
use aide::operation::{ParamLocation, add_parameters, parameters_from_schema, set_body};
use aide::{OperationInput, OperationOutput};
use axum::Router;
use drophammer_protocol::api::Problem;
use schemars::{JsonSchema, Schema, json_schema};

use super::{Answer, Body, Despite, Matching, Paging, Seen, Waiting, Which};
use crate::denied::Denied;

const ABOUT: &str = "\
Machines, what is declared about them, and who has which. Every error is a `application/problem+json` with a sentence; every \
document has a generation, which is its entity tag: send it as `If-Match` to change only what you read. A `POST` with an \
`Idempotency-Key` can be sent again until it's answered: it happens once. `GET /v1/watch` tells of all changes.";

/// The routes, and what they look like from outside.
pub(super) fn finish<S: Clone + Send + Sync + 'static>(router: ApiRouter<S>) -> (Router<S>, OpenApi) {
    let mut api = OpenApi {
        info: Info {
            title: "drophammer".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: Some(ABOUT.into()),
            ..Info::default()
        },
        components: Some(Components::default()),
        ..OpenApi::default()
    };
    let router = router.finish_api_with(&mut api, |api| {
        let token = SecurityScheme::Http {
            scheme: "bearer".into(),
            bearer_format: None,
            description: Some("A token of this server, or one of its OpenID Connect provider.".into()),
            extensions: <_>::default(),
        };
        api.security_scheme("token", token).security_requirement("token")
    });
    for (path, item) in api.paths.iter_mut().flat_map(|paths| &mut paths.paths) {
        let ReferenceOr::Item(item) = item else { continue };
        let names: Vec<&str> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        // Whoever may not ask is told so, whatever it was.
        let problem = || json("Why not: a sentence.", "application/problem+json", json_schema!({"$ref": PROBLEM}));
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            let answers = operation.responses.get_or_insert_default();
            answers.default.get_or_insert_with(|| ReferenceOr::Item(problem()));
            operation.parameters.extend(names.iter().map(|name| ReferenceOr::Item(path_parameter(name))));
        }
    }
    (router, api)
}

const PROBLEM: &str = "#/components/schemas/Problem";

fn text() -> ParameterSchemaOrContent {
    let json_schema = json_schema!({"type": "string"});
    ParameterSchemaOrContent::Schema(SchemaObject { json_schema, external_docs: None, example: None })
}

fn parameter(name: &str, about: &str, required: bool) -> ParameterData {
    ParameterData {
        name: name.into(),
        description: (!about.is_empty()).then(|| about.into()),
        required,
        deprecated: None,
        format: text(),
        example: None,
        examples: <_>::default(),
        explode: None,
        extensions: <_>::default(),
    }
}

fn path_parameter(name: &str) -> Parameter {
    Parameter::Path { parameter_data: parameter(name, "", true), style: PathStyle::Simple }
}

/// A header that may be sent.
pub(super) fn header(name: &str, about: &str) -> ReferenceOr<Parameter> {
    ReferenceOr::Item(Parameter::Header { parameter_data: parameter(name, about, false), style: HeaderStyle::Simple })
}

fn json(description: &str, kind: &str, json_schema: Schema) -> Response {
    let schema = Some(SchemaObject { json_schema, external_docs: None, example: None });
    let content = [(kind.to_owned(), MediaType { schema, ..MediaType::default() })];
    Response { description: description.into(), content: content.into_iter().collect(), ..Response::default() }
}

impl<T: JsonSchema> OperationInput for Body<T> {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        let schema = ctx.schema.subschema_for::<T>();
        let content = json("", "application/json", schema).content;
        set_body(
            ctx,
            operation,
            RequestBody { description: None, content, required: true, extensions: <_>::default() },
        );
    }
}

/// The paths' own parameters are seen to where the paths are known.
impl<T> OperationInput for Which<T> {}

macro_rules! query {
    ($($kind:ty),*) => {
        $(impl OperationInput for $kind {
            fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
                let schema = ctx.schema.subschema_for::<Self>();
                let parameters = parameters_from_schema(ctx, schema, ParamLocation::Query);
                add_parameters(ctx, operation, parameters);
            }
        })*
    };
}

query!(Waiting, Paging, Matching, Seen, Despite);

impl OperationOutput for Denied {
    type Inner = Problem;

    fn inferred_responses(ctx: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Response)> {
        let schema = ctx.schema.subschema_for::<Problem>();
        vec![(None, json("Why not: a sentence.", "application/problem+json", schema))]
    }
}

impl<T: JsonSchema> OperationOutput for Answer<T> {
    type Inner = T;

    fn inferred_responses(ctx: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Response)> {
        let schema = ctx.schema.subschema_for::<T>();
        let answer = |about| json(about, "application/json", schema.clone());
        vec![(Some(200), answer("As it is now.")), (Some(201), answer("It's new."))]
    }
}

/// Something is done and there is nothing to say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done;

impl axum::response::IntoResponse for Done {
    fn into_response(self) -> axum::response::Response {
        axum::http::StatusCode::NO_CONTENT.into_response()
    }
}

impl OperationOutput for Done {
    type Inner = ();

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Response)> {
        vec![(Some(204), Response { description: "It's done.".into(), ..Response::default() })]
    }
}
