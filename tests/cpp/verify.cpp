// Loads an exported model without Python and compares what it gives with what Python gave.
//
//     verify MODEL.pt CASES.pt
//
// tests/cpp/cases.py writes the cases: inputs, and what Python made of them. One line is printed
// for the model. The exit status is 1 at the first difference, 2 where something cannot be run.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/script.h>

namespace {

using c10::impl::GenericDict;
using torch::IValue;
using torch::Tensor;
using torch::jit::Module;

// As in formats/observation.py.
constexpr std::int64_t kOff = 0;
constexpr std::int64_t kStatistics = 1;

struct Difference : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What torch.save wrote: plain values, lists, dicts and tensors.
IValue read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error("cannot read " + path);
  }
  return torch::jit::pickle_load({std::istreambuf_iterator<char>(file), {}});
}

std::vector<Tensor> tensors(const GenericDict& from, const std::string& key) {
  std::vector<Tensor> found;
  for (const IValue& value : from.at(key).toListRef()) {
    found.push_back(value.toTensor());
  }
  return found;
}

// Copies, so that a model that works in place leaves the case as it is.
std::vector<IValue> arguments(const std::vector<Tensor>& inputs) {
  std::vector<IValue> copies;
  for (const Tensor& input : inputs) {
    copies.emplace_back(input.clone());
  }
  return copies;
}

// The leaves of nested outputs in the order of formats/structure.py: tuples and lists by position,
// dicts in insertion order, which c10::Dict keeps.
void flatten(const IValue& value, std::vector<Tensor>& leaves) {
  if (value.isTensor()) {
    leaves.push_back(value.toTensor());
  } else if (value.isTuple()) {
    for (const IValue& element : value.toTupleRef().elements()) {
      flatten(element, leaves);
    }
  } else if (value.isList()) {
    for (const IValue& element : value.toListRef()) {
      flatten(element, leaves);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      flatten(entry.value(), leaves);
    }
  } else if (value.isNone()) {
    // What the model did not return is no output.
  } else if (value.isBool()) {
    leaves.push_back(torch::tensor(value.toBool()));
  } else if (value.isInt()) {
    leaves.push_back(torch::tensor(value.toInt()));
  } else if (value.isDouble()) {
    leaves.push_back(torch::tensor(static_cast<float>(value.toDouble())));
  } else {
    throw Difference("an output is a " + value.tagKind());
  }
}

std::vector<Tensor> flatten(const IValue& value) {
  std::vector<Tensor> leaves;
  flatten(value, leaves);
  return leaves;
}

std::string describe(const Tensor& tensor) {
  std::ostringstream text;
  text << c10::getDtypeNames(tensor.scalar_type()).first << tensor.sizes();
  return text.str();
}

// Compares as export/tensors.py does, by tolerances that the cases bring along.
class Comparison {
 public:
  explicit Comparison(const GenericDict& tolerance) : tolerance_(tolerance) {}

  void same(const std::string& what, const Tensor& wanted, const Tensor& found) {
    if (wanted.scalar_type() != found.scalar_type() || wanted.sizes() != found.sizes()) {
      throw Difference(what + ": " + describe(wanted) + " became " + describe(found));
    }
    if (wanted.numel() == 0) {
      return;
    }
    if (!wanted.is_floating_point()) {
      if (!torch::equal(wanted, found)) {
        throw Difference(what + ": not equal");
      }
      return;
    }
    const auto pair = tolerance_.at(c10::getDtypeNames(wanted.scalar_type()).first).toTupleRef();
    const double relative = pair.elements()[0].toDouble();
    const double absolute = pair.elements()[1].toDouble();
    const Tensor a = wanted.to(torch::kDouble);
    const Tensor b = found.to(torch::kDouble);
    const Tensor finite = a.isfinite().logical_and(b.isfinite());
    // Where one is not finite, both must be the same kind of not finite.
    const Tensor alike = finite.logical_or(a == b).logical_or(a.isnan().logical_and(b.isnan()));
    const Tensor gap = (a - b).abs().masked_fill(finite.logical_not(), 0.0);
    const Tensor size = a.abs().masked_fill(finite.logical_not(), 0.0);
    const double scale = std::max(1.0, size.max().item<double>());
    const double largest = gap.max().item<double>();
    if (!alike.all().item<bool>() ||
        !(gap <= absolute * scale + relative * size).all().item<bool>()) {
      std::ostringstream text;
      text << what << ": moved by " << largest;
      throw Difference(text.str());
    }
    largest_ = std::max(largest_, largest);
  }

  void same(const std::string& what, const std::vector<Tensor>& wanted,
            const std::vector<Tensor>& found) {
    if (wanted.size() != found.size()) {
      throw Difference(what + ": " + std::to_string(wanted.size()) + " tensors became " +
                       std::to_string(found.size()));
    }
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      same(what + " " + std::to_string(i), wanted[i], found[i]);
    }
  }

  // Gradients may be small throughout: they are compared in units of the largest wanted one.
  void same_gradients(const std::string& what, std::vector<Tensor> wanted,
                      std::vector<Tensor> found) {
    double unit = 0.0;
    for (const Tensor& tensor : wanted) {
      unit = std::max(unit, tensor.to(torch::kDouble).abs().max().item<double>());
    }
    for (auto* list : {&wanted, &found}) {
      for (Tensor& tensor : *list) {
        tensor = unit > 0.0 ? (tensor.to(torch::kDouble) / unit).to(tensor.scalar_type()) : tensor;
      }
    }
    same(what, wanted, found);
  }

  double largest() const { return largest_; }

 private:
  GenericDict tolerance_;
  double largest_ = 0.0;
};

// What engine.set_mode does: some layers record statistics, all others nothing.
void set_statistics(const Module& model, const std::set<std::string>& layers) {
  for (const auto& [name, layer] : model.named_modules()) {
    Module own = layer;  // a handle: the attribute is that of the model
    if (own.hasattr("_vitrine_mode")) {
      own.setattr("_vitrine_mode", layers.count(name) > 0 ? kStatistics : kOff);
    }
    if (own.hasattr("_vitrine_open")) {
      own.setattr("_vitrine_open", !layers.empty());
    }
  }
}

// The integers of each layer, as Python has them.
std::vector<Tensor> codes_of(const IValue& lists) {
  std::vector<Tensor> codes;
  for (const IValue& list : lists.toListRef()) {
    codes.push_back(torch::tensor(list.toIntVector(), torch::kLong));
  }
  return codes;
}

// The gradient of the outputs' sum, weighted by a fixed projection, by each input that has one.
std::vector<Tensor> gradients(Module& model, const GenericDict& one) {
  std::vector<Tensor> with_gradient;
  std::vector<IValue> passed;
  for (const Tensor& input : tensors(one, "inputs")) {
    Tensor own = input.clone();
    if (own.is_floating_point()) {
      own.requires_grad_();
      with_gradient.push_back(own);
    }
    passed.emplace_back(own);
  }
  const std::vector<Tensor> outputs = flatten(model.forward(passed));
  const std::vector<Tensor> projections = tensors(one, "projections");
  Tensor total = torch::zeros({}, torch::kDouble);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].requires_grad()) {
      total = total + (outputs[i].to(torch::kDouble) * projections.at(i)).sum();
    }
  }
  total.backward();
  std::vector<Tensor> found;
  for (const Tensor& input : with_gradient) {
    found.push_back(input.grad().defined() ? input.grad() : torch::zeros_like(input));
  }
  return found;
}

struct Count {
  std::size_t inputs = 0;
  std::size_t outputs = 0;
  std::size_t vectors = 0;
  std::size_t gradients = 0;
  std::size_t reversed = 0;
};

void check_case(Module& model, const GenericDict& one, const std::set<std::string>& layers,
                Comparison& comparison, Count& count) {
  const torch::NoGradGuard no_gradients;
  const std::vector<Tensor> inputs = tensors(one, "inputs");
  const std::vector<Tensor> outputs = tensors(one, "outputs");
  set_statistics(model, {});
  comparison.same("output", outputs, flatten(model.forward(arguments(inputs))));

  set_statistics(model, layers);
  const auto observed = model.get_method("observe")(arguments(inputs)).toTuple();
  const std::vector<Tensor> vectors = tensors(one, "vectors");
  const std::vector<Tensor> found = flatten(observed->elements()[2]);
  comparison.same("output of observe", outputs, flatten(observed->elements()[0]));
  comparison.same("codes of layer", tensors(one, "codes"), codes_of(observed->elements()[1]));
  comparison.same("statistics vector", vectors, found);

  const auto summary = model.get_method("summary")(arguments(inputs)).toTuple();
  const Tensor joined = vectors.empty() ? torch::zeros({0}) : torch::cat(vectors);
  comparison.same("output of summary", outputs, flatten(summary->elements()[0]));
  comparison.same("codes of layer", tensors(one, "codes"), codes_of(summary->elements()[1]));
  comparison.same("summary", joined, summary->elements()[2].toTensor());
  set_statistics(model, {});

  count.inputs += 1;
  count.outputs += outputs.size();
  count.vectors += vectors.size();
}

void check_gradient(Module& model, Module& frozen, const GenericDict& one, Comparison& comparison,
                    Count& count) {
  comparison.same_gradients("gradient of input", tensors(one, "gradients"), gradients(model, one));
  count.gradients += 1;
  if (one.contains("unreversed")) {
    // Freezing drops the `detach` that reverses, so a frozen model gives the opposite sign.
    comparison.same_gradients("frozen gradient of input", tensors(one, "unreversed"),
                              gradients(frozen, one));
    count.reversed += 1;
  }
}

// Runs `check` on each entry of a list and says which one it was that differs.
template <typename Check>
void each(const GenericDict& cases, const std::string& key, Check check) {
  std::size_t number = 0;
  for (const IValue& one : cases.at(key).toListRef()) {
    try {
      check(one.toGenericDict());
    } catch (const Difference& difference) {
      throw Difference(key + " " + std::to_string(number) + ": " + difference.what());
    }
    ++number;
  }
}

void verify(const std::string& name, const std::string& model_path, const GenericDict& cases) {
  Module model = torch::jit::load(model_path);
  model.eval();
  Comparison comparison(cases.at("tolerance").toGenericDict());
  std::set<std::string> layers;
  for (const IValue& layer : cases.at("layers").toListRef()) {
    layers.insert(layer.toStringRef());
  }
  Count count;
  each(cases, "cases",
       [&](const GenericDict& one) { check_case(model, one, layers, comparison, count); });
  Module frozen = torch::jit::freeze(model);
  each(cases, "gradients", [&](const GenericDict& one) {
    check_gradient(model, frozen, one, comparison, count);
  });
  std::cout << name << ": " << count.inputs << " inputs, " << count.outputs << " outputs, "
            << count.vectors << " statistics vectors, " << count.gradients << " gradients, "
            << count.reversed << " reversed; largest difference " << comparison.largest() << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv, argv + argc);
  if (words.size() != 3) {
    std::cerr << "usage: verify MODEL.pt CASES.pt\n";
    return 2;
  }
  at::set_num_threads(1);  // small tensors: more threads only wait for each other
  std::string name = words[1];
  try {
    const GenericDict cases = read(words[2]).toGenericDict();
    name = cases.at("model").toStringRef();
    verify(name, words[1], cases);
  } catch (const Difference& difference) {
    std::cerr << name << ": differs from Python: " << difference.what() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << name << ": " << error.what() << '\n';
    return 2;
  }
  return 0;
}
