//! Builder of graphs: nodes under unique names, and the tensors that they use.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use diffae_nets::num_groups;
use diffae_nets::weights::{TensorMap, TensorSource, Weights, is_finite};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::Port;
use crate::proto::{
    AttributeProto, AttributeType, DimensionProto, DimensionValue, ElementType, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
};

/// Version of the operators of all graphs.
pub const OPSET: u32 = 17;
/// Version of the file format that came with [`OPSET`].
const IR_VERSION: i64 = 8;
/// Name of the axis of pictures in a batch.
pub(crate) const BATCH: &str = "N";

/// Number type of weights and arithmetic. Inputs and outputs are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    F32,
    /// Half precision; norm statistics, softmax and the sinusoids of timesteps stay f32, and so do edit directions.
    F16,
}

impl Precision {
    /// Returns the number type of weights.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }

    fn element_type(self) -> ElementType {
        match self {
            Self::F32 => ElementType::Float,
            Self::F16 => ElementType::Float16,
        }
    }
}

/// A tensor in a graph, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value(String);

impl Value {
    /// The input that is left out.
    pub(crate) fn none() -> Self {
        Self(String::new())
    }
}

/// A graph with the description of its inputs and outputs.
#[derive(Debug, Clone)]
pub(crate) struct Graph {
    pub(crate) model: ModelProto,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
}

/// A graph under construction.
#[derive(Debug)]
pub(crate) struct GraphBuilder<'a> {
    weights: &'a Weights,
    precision: Precision,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Number of values under each name.
    names: BTreeMap<String, usize>,
    /// Maximum number of groups of norms.
    max_groups: usize,
}

impl<'a> GraphBuilder<'a> {
    /// Begins a graph whose weights are read from `weights`.
    pub(crate) fn new(weights: &'a Weights, precision: Precision) -> Self {
        Self {
            weights,
            precision,
            nodes: vec![],
            initializers: vec![],
            inputs: vec![],
            outputs: vec![],
            names: BTreeMap::new(),
            max_groups: usize::MAX,
        }
    }

    /// Returns the graph with norms of at most so many groups.
    pub(crate) fn with_groups(self, max_groups: usize) -> Self {
        Self { max_groups, ..self }
    }

    /// Returns the number of groups of a norm.
    pub(crate) fn num_groups(&self, channels: usize) -> usize {
        num_groups(channels).min(self.max_groups)
    }

    /// Returns the shape of a weight, if there is one of this name.
    pub(crate) fn weight_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.source().shape(name).map(<[usize]>::to_vec)
    }

    /// Adds an input of the graph, f32, `[N, dims..]`.
    pub(crate) fn input(&mut self, name: &str, dims: &[usize]) -> Value {
        self.inputs.push(Port::new(name, dims));
        Value(name.to_owned())
    }

    /// Makes a value an output of the graph, f32, `[N, dims..]`.
    pub(crate) fn output(&mut self, name: &str, value: &Value, dims: &[usize]) {
        let Value(value) = self.in_f32(value, name);
        let names = self.nodes.iter_mut().flat_map(|node| node.output.iter_mut().chain(&mut node.input));
        names.filter(|known| **known == value).for_each(|known| name.clone_into(known));
        self.outputs.push(Port::new(name, dims));
    }

    /// Adds a node with one result.
    pub(crate) fn node(
        &mut self,
        path: &str,
        operator: &str,
        inputs: &[&Value],
        attributes: Vec<AttributeProto>,
    ) -> Value {
        let name = self.unique(&format!("{path}/{operator}"));
        self.push(name.clone(), operator, inputs, (attributes, vec![name.clone()]));
        Value(name)
    }

    /// Cuts a value along an axis into parts of these lengths.
    pub(crate) fn split<const COUNT: usize>(
        &mut self,
        path: &str,
        value: &Value,
        (axis, lengths): (i64, [usize; COUNT]),
    ) -> [Value; COUNT] {
        let mut parts = self.split_all(path, value, (axis, &lengths)).into_iter();
        // As many parts as lengths.
        std::array::from_fn(|_| parts.next().unwrap_or_else(|| value.clone()))
    }

    /// Splits a value along an axis into any number of parts.
    pub(crate) fn split_all(&mut self, path: &str, value: &Value, (axis, lengths): (i64, &[usize])) -> Vec<Value> {
        let num_parts = lengths.len();
        let lengths: Vec<i64> = lengths.iter().copied().map(signed).collect();
        let lengths = self.integers(path, "lengths", &lengths);
        let name = self.unique(&format!("{path}/Split"));
        let outputs: Vec<String> = (0..num_parts).map(|part| format!("{name}/{part}")).collect();
        self.push(name, "Split", &[value, &lengths], (vec![integer("axis", axis)], outputs.clone()));
        outputs.into_iter().map(Value).collect()
    }

    fn push(
        &mut self,
        name: String,
        operator: &str,
        inputs: &[&Value],
        (attribute, output): (Vec<AttributeProto>, Vec<String>),
    ) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|Value(name)| name.clone()).collect(),
            output,
            name: Some(name),
            op_type: Some(operator.to_owned()),
            attribute,
        });
    }

    /// Adds a weight of the model, in the number type of the arithmetic.
    ///
    /// # Errors
    /// [`Error::Nets`] if there is none, or a number is not finite in that type.
    pub(crate) fn weight(&mut self, name: &str) -> Result<Value> {
        let dims = self.weight_shape(name).unwrap_or_default();
        self.weight_as(name, &dims)
    }

    /// Adds a weight of the model with another shape of as many values.
    ///
    /// # Errors
    /// As [`weight`](Self::weight), and if the shape does not fit.
    pub(crate) fn weight_as(&mut self, name: &str, dims: &[usize]) -> Result<Value> {
        let weight = self.weights.tensor(name, self.precision.dtype(), &Device::Cpu)?;
        let weight = weight.reshape(dims).map_err(|source| Error::Tensor { part: "reading a weight", source })?;
        let name = self.unique(name);
        self.initializer(name, &weight)
    }

    /// Reads a weight of the model in f32, for constants that are computed from it.
    ///
    /// # Errors
    /// [`Error::Nets`] if there is none, or a number is not finite.
    pub(crate) fn weight_in_f32(&self, name: &str) -> Result<Tensor> {
        Ok(self.weights.tensor(name, DType::F32, &Device::Cpu)?)
    }

    /// Adds constant numbers in the number type of the arithmetic.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there are not as many as the shape says.
    pub(crate) fn numbers(&mut self, path: &str, name: &str, (values, dims): (&[f32], &[usize])) -> Result<Value> {
        let tensor = Tensor::from_slice(values, dims, &Device::Cpu).and_then(|t| t.to_dtype(self.precision.dtype()));
        self.constant(path, name, &tensor.map_err(|source| Error::Tensor { part: "adding constants", source })?)
    }

    /// Adds constant f32 numbers.
    ///
    /// # Errors
    /// As [`numbers`](Self::numbers).
    pub(crate) fn singles(&mut self, path: &str, name: &str, (values, dims): (&[f32], &[usize])) -> Result<Value> {
        let tensor = Tensor::from_slice(values, dims, &Device::Cpu);
        self.constant(path, name, &tensor.map_err(|source| Error::Tensor { part: "adding constants", source })?)
    }

    /// Adds a constant tensor as it is.
    ///
    /// # Errors
    /// [`Error::Nets`] if it cannot be read, or a number is not finite; [`Error::Tensor`] if graphs have no such number type.
    pub(crate) fn constant(&mut self, path: &str, name: &str, tensor: &Tensor) -> Result<Value> {
        let name = self.unique(&format!("{path}/{name}"));
        self.initializer(name, tensor)
    }

    /// Adds constant integers, such as a shape.
    pub(crate) fn integers(&mut self, path: &str, name: &str, values: &[i64]) -> Value {
        let name = self.unique(&format!("{path}/{name}"));
        self.initializers.push(TensorProto {
            dims: vec![signed(values.len())],
            data_type: Some(ElementType::Int64.into()),
            name: Some(name.clone()),
            raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        });
        Value(name)
    }

    fn initializer(&mut self, name: String, tensor: &Tensor) -> Result<Value> {
        let failed = |source| Error::Tensor { part: "adding constants", source };
        let element = match tensor.dtype() {
            DType::F16 => ElementType::Float16,
            DType::F32 => ElementType::Float,
            DType::I64 => ElementType::Int64,
            other => return Err(failed(candle_core::Error::UnsupportedDTypeForOp(other, "ONNX export"))),
        };
        if tensor.dtype().is_float() && !is_finite(tensor).map_err(failed)? {
            return Err(diffae_nets::Error::NotFinite { name }.into());
        }
        let stored = TensorMap(BTreeMap::from([(name.clone(), tensor.clone())]));
        let bytes = stored.read(&name)?.bytes.into_owned();
        self.initializers.push(TensorProto {
            dims: tensor.dims().iter().copied().map(signed).collect(),
            data_type: Some(element.into()),
            name: Some(name.clone()),
            raw_data: Some(bytes),
        });
        Ok(Value(name))
    }

    /// Converts an f32 value to the number type of the arithmetic.
    pub(crate) fn in_precision(&mut self, value: &Value, path: &str) -> Value {
        self.cast(value, path, self.precision.element_type())
    }

    /// Converts a value of the arithmetic to f32.
    pub(crate) fn in_f32(&mut self, value: &Value, path: &str) -> Value {
        self.cast(value, path, ElementType::Float)
    }

    fn cast(&mut self, value: &Value, path: &str, to: ElementType) -> Value {
        match self.precision {
            Precision::F32 => value.clone(),
            Precision::F16 => self.node(path, "Cast", &[value], vec![integer("to", i64::from(i32::from(to)))]),
        }
    }

    fn unique(&mut self, name: &str) -> String {
        let count = self.names.entry(name.to_owned()).or_default();
        *count += 1;
        if *count == 1 { name.to_owned() } else { format!("{name}_{count}") }
    }

    /// Completes the graph.
    pub(crate) fn finish(self, name: &str) -> Graph {
        let graph = GraphProto {
            node: self.nodes,
            name: Some(name.to_owned()),
            initializer: self.initializers,
            input: self.inputs.iter().map(value_info).collect(),
            output: self.outputs.iter().map(value_info).collect(),
        };
        let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET.into()) };
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("diffae".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(graph),
            opset_import: vec![opset],
        };
        Graph { model, inputs: self.inputs, outputs: self.outputs }
    }
}

fn value_info(port: &Port) -> ValueInfoProto {
    let batch = DimensionValue::Name(BATCH.to_owned());
    let lengths = port.dims().map(|length| DimensionValue::Length(signed(length)));
    let dim = std::iter::once(batch).chain(lengths).map(|value| DimensionProto { value: Some(value) }).collect();
    let tensor = TensorType { elem_type: Some(ElementType::Float.into()), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(port.name.clone()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// Converts a length to the type of the format; lengths in memory always fit.
pub(crate) fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Creates an attribute that is an integer.
pub(crate) fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// Returns the values of a weight, for constants that are computed from it.
///
/// # Errors
/// [`Error::Tensor`] if it is not f32.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    computed(tensor.flatten_all().and_then(|tensor| tensor.to_vec1()))
}

/// Converts a failure of the arithmetic on weights.
pub(crate) fn computed<T>(result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Tensor { part: "computing constants of weights", source })
}

/// Creates an attribute that is a list of integers.
pub(crate) fn integers(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// Creates an attribute that is a number.
pub(crate) fn float(name: &str, value: f64) -> AttributeProto {
    #[expect(clippy::cast_possible_truncation, reason = "attributes of the format are f32")]
    let value = value as f32;
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// Creates an attribute that is a word.
pub(crate) fn word(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, AttributeType::String) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind.into()), ..AttributeProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_have_the_number_type_of_their_tensor() {
        let weights = Weights::new(std::sync::Arc::new(TensorMap::default()));
        let mut graph = GraphBuilder::new(&weights, Precision::F16);
        let ones = |dtype| Tensor::ones(3, dtype, &Device::Cpu).unwrap();
        for (dtype, element, bytes) in [
            (DType::F16, ElementType::Float16, 6),
            (DType::F32, ElementType::Float, 12),
            (DType::I64, ElementType::Int64, 24),
        ] {
            graph.constant("path", "ones", &ones(dtype)).unwrap();
            let stored = graph.initializers.last().unwrap();
            assert_eq!((stored.data_type, stored.raw_data.as_ref().unwrap().len()), (Some(element.into()), bytes));
        }
        for dtype in [DType::U8, DType::BF16, DType::F64] {
            assert!(matches!(graph.constant("path", "ones", &ones(dtype)), Err(Error::Tensor { .. })), "{dtype:?}");
        }
        let overflow = graph.numbers("path", "large", (&[1e5], &[1])).unwrap_err();
        assert!(matches!(overflow, Error::Nets(diffae_nets::Error::NotFinite { .. })), "{overflow}");
        assert_eq!(graph.initializers.len(), 3);
    }
}
