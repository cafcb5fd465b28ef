package apicheck

import (
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/ext"
	admission "k8s.io/api/admissionregistration/v1"
)

// A ValidatingAdmissionPolicy as the API server evaluates it, except that everything is dynamically
// typed: conditions first, then variables in their order, then the validations.
type policy struct {
	t    *testing.T
	env  *cel.Env
	spec admission.ValidatingAdmissionPolicySpec
}

func newPolicy(t *testing.T, file, name string) policy {
	t.Helper()
	env, err := cel.NewEnv(
		cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType),
		cel.Variable("namespaceObject", cel.DynType), cel.Variable("request", cel.DynType),
		cel.Variable("variables", cel.DynType), ext.Strings(ext.StringsVersion(2)))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rendered(t) {
		if p, ok := o.any.(*admission.ValidatingAdmissionPolicy); ok && o.file == file && o.name == name {
			return policy{t, env, p.Spec}
		}
	}
	t.Fatalf("%s renders no policy %s", file, name)
	return policy{}
}

func (p policy) evaluate(expression string, input map[string]any) (ref.Val, error) {
	p.t.Helper()
	ast, issues := p.env.Compile(expression)
	if issues != nil && issues.Err() != nil {
		p.t.Fatalf("%s: %v", expression, issues.Err())
	}
	program, err := p.env.Program(ast)
	if err != nil {
		p.t.Fatal(err)
	}
	value, _, err := program.Eval(input)
	return value, err
}

// Empty: admitted. Otherwise the message of the first validation that fails. An error of an expression
// denies, as failurePolicy Fail does.
func (p policy) judge(object, old, namespace, request any) string {
	p.t.Helper()
	variables := map[string]any{}
	input := map[string]any{"object": object, "oldObject": old, "namespaceObject": namespace,
		"request": request, "variables": variables}
	for _, condition := range p.spec.MatchConditions {
		value, err := p.evaluate(condition.Expression, input)
		if err != nil {
			p.t.Fatalf("condition %s: %v", condition.Name, err)
		}
		if value.Value() == false {
			return ""
		}
	}
	for _, variable := range p.spec.Variables {
		value, err := p.evaluate(variable.Expression, input)
		if err != nil {
			p.t.Fatalf("variable %s: %v", variable.Name, err)
		}
		variables[variable.Name] = value
	}
	for _, validation := range p.spec.Validations {
		value, err := p.evaluate(validation.Expression, input)
		if err != nil {
			return "error: " + err.Error()
		}
		if value.Value() == true {
			continue
		}
		if validation.MessageExpression == "" {
			return validation.Message
		}
		message, err := p.evaluate(validation.MessageExpression, input)
		if err != nil {
			p.t.Fatalf("message: %v", err)
		}
		return message.Value().(string)
	}
	return ""
}

type annotations = map[string]string

func pod(namespace string, a annotations) any {
	metadata := map[string]any{"name": "p", "namespace": namespace}
	if a != nil {
		metadata["annotations"] = a
	}
	return map[string]any{"metadata": metadata}
}

func namespace(name string, labels map[string]string) any {
	return map[string]any{"metadata": map[string]any{"name": name, "labels": labels}}
}

func TestWhoMayAskForWhat(t *testing.T) {
	const realtime, budget = "may not ask for rubato.dev/class", "may not ask for more than"
	listed := newPolicy(t, "software-gpu.yaml", "rubato-rights")
	labelled := newPolicy(t, "hybrid-nvidia.yaml", "gpu-sharing-rights")
	nobody := newPolicy(t, "default.yaml", "rubato-rights")
	rt := annotations{"rubato.dev/class": "realtime"}
	be := annotations{"rubato.dev/class": "best-effort"}
	one := annotations{"camera.rubato.dev/class": "realtime"}
	cases := []struct {
		name      string
		policy    policy
		namespace any
		object    any
		old       any
		refused   string
	}{
		{"nothing said", nobody, namespace("a", nil), pod("a", nil), nil, ""},
		{"other annotations", nobody, namespace("a", nil), pod("a", annotations{"x.dev/class": "realtime"}), nil, ""},
		{"best-effort by name", nobody, namespace("a", nil), pod("a", be), nil, ""},
		{"none may by default", nobody, namespace("a", nil), pod("a", rt), nil, realtime},
		{"a typing error is no way in", nobody, namespace("a", nil), pod("a", annotations{"rubato.dev/class": "Realtime"}), nil, realtime},
		{"for one container", nobody, namespace("a", nil), pod("a", one), nil, realtime},
		{"listed", listed, namespace("team-a", nil), pod("team-a", rt), nil, ""},
		{"listed, for one container", listed, namespace("default", nil), pod("default", one), nil, ""},
		{"not listed", listed, namespace("team-b", nil), pod("team-b", rt), nil, realtime},
		{"a label does not count where the list does", listed, namespace("team-b", annotations{"rubato.dev/allow-realtime": "true"}), pod("team-b", rt), nil, realtime},
		{"annotated later", listed, namespace("team-b", nil), pod("team-b", rt), pod("team-b", nil), realtime},
		{"changed later", listed, namespace("team-b", nil), pod("team-b", rt), pod("team-b", be), realtime},
		{"from before the policy", listed, namespace("team-b", nil), pod("team-b", rt), pod("team-b", rt), ""},
		{"given up", listed, namespace("team-b", nil), pod("team-b", be), pod("team-b", rt), ""},
		{"a small budget", listed, namespace("team-b", nil), pod("team-b", annotations{"rubato.dev/overhead-budget": "2.5%"}), nil, ""},
		{"a large budget", listed, namespace("team-b", nil), pod("team-b", annotations{"rubato.dev/overhead-budget": "3%"}), nil, budget},
		{"a large budget of one container", listed, namespace("default", nil), pod("default", annotations{"c.rubato.dev/overhead-budget": "10%"}), nil, budget},
		{"a large budget, listed", listed, namespace("team-a", nil), pod("team-a", annotations{"rubato.dev/overhead-budget": "10%"}), nil, ""},
		{"a budget that is none", listed, namespace("team-b", nil), pod("team-b", annotations{"rubato.dev/overhead-budget": "much"}), nil, budget},
		{"labelled", labelled, namespace("b", annotations{"rubato.dev/allow-realtime": "true"}), pod("b", rt), nil, ""},
		{"labelled otherwise", labelled, namespace("b", annotations{"rubato.dev/allow-realtime": "no"}), pod("b", rt), nil, realtime},
		{"no labels at all", labelled, map[string]any{"metadata": map[string]any{"name": "b"}}, pod("b", rt), nil, realtime},
		{"labelled for something else", labelled, namespace("b", annotations{"rubato.dev/allow-budget": "true"}), pod("b", rt), nil, realtime},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.policy.t = t
			got := c.policy.judge(c.object, c.old, c.namespace, nil)
			if c.refused == "" && got != "" {
				t.Errorf("refused: %s", got)
			}
			if c.refused != "" && !contains(got, c.refused) {
				t.Errorf("got %q, expected %q", got, c.refused)
			}
		})
	}
}

func contains(text, part string) bool {
	for i := 0; i+len(part) <= len(text); i++ {
		if text[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

func TestTheAgentChangesItsOwnNodeOnly(t *testing.T) {
	p := newPolicy(t, "hybrid-nvidia.yaml", "gpu-sharing-nodes")
	node := func(name string, labels annotations, taint string) any {
		return map[string]any{"metadata": map[string]any{"name": name, "labels": labels},
			"spec": map[string]any{"taint": taint}}
	}
	request := func(user, node string) any {
		extra := map[string]any{}
		if node != "" {
			extra["authentication.kubernetes.io/node-name"] = []string{node}
		}
		return map[string]any{"userInfo": map[string]any{"username": user, "extra": extra}}
	}
	const agent = "system:serviceaccount:rubato-system:gpu-sharing"
	before := node("n1", annotations{"zone": "a"}, "")
	ours := node("n1", annotations{"zone": "a", "rubato.dev/gpu.slots": "10"}, "")
	cases := []struct {
		name    string
		object  any
		request any
		refused bool
	}{
		{"its labels", ours, request(agent, "n1"), false},
		{"from another node", ours, request(agent, "n2"), true},
		{"with a token of no node", ours, request(agent, ""), true},
		{"another label", node("n1", annotations{"zone": "b"}, ""), request(agent, "n1"), true},
		{"a label of others taken away", node("n1", annotations{}, ""), request(agent, "n1"), true},
		{"the spec", node("n1", annotations{"zone": "a"}, "t"), request(agent, "n1"), true},
		{"somebody else", node("n1", annotations{}, "t"), request("kubernetes-admin", ""), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			if got := p.judge(c.object, before, nil, c.request); (got != "") != c.refused {
				t.Errorf("judged %q", got)
			}
		})
	}
}
