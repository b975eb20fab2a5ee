const one = id => document.getElementById(id), drop = one("drop"), said = one("said");
let token = "", shown = null, drawn = null;
const headers = () => token ? {Authorization: "Bearer " + token} : {};
const fail = text => { said.className = "error"; said.textContent = text; };
async function ask(path, options) {
  const got = await fetch(path, {...options, headers: headers()});
  if (got.status === 401) { one("secret").hidden = false; throw new Error("enter the token of this server"); }
  const answer = await got.json();
  if (!got.ok) throw new Error(answer.error);
  return answer;
}
async function models() {
  const names = (await ask("v2/repository/index", {method: "POST"})).filter(each => each.state === "READY");
  one("model").replaceChildren(...names.map(each => new Option(each.name, each.name)));
  one("models").hidden = names.length < 2;
}
async function explain(file, model, label) {
  const address = "evidence?" + new URLSearchParams({model, label});
  const got = await fetch(address, {method: "POST", body: file, headers: headers()});
  if (!got.ok) { one("why").textContent = (await got.json()).error; return; }
  drawn = URL.createObjectURL(await got.blob());
  one("evidence").src = drawn; one("evidence").hidden = false;
  one("why").textContent = "In color: where the evidence for " + label + " is.";
}
async function label(file) {
  for (const each of [shown, drawn]) if (each) URL.revokeObjectURL(each);
  drawn = null; one("evidence").hidden = true; one("why").textContent = "";
  one("picture").src = shown = URL.createObjectURL(file);
  one("picture").hidden = false; one("labels").replaceChildren(); said.className = ""; said.textContent = "…";
  try {
    const chosen = one("model").value;
    const answer = await ask("predict?topk=5" + (chosen ? "&model=" + encodeURIComponent(chosen) : ""),
      {method: "POST", body: file});
    const rows = answer.predictions.map(each => {
      const row = document.createElement("tr"), bar = document.createElement("meter");
      bar.value = each.probability; row.insertCell().textContent = each.label;
      const number = row.insertCell(); number.className = "number";
      number.textContent = (100 * each.probability).toFixed(1) + " %"; row.insertCell().append(bar); return row;
    });
    one("labels").replaceChildren(...rows);
    const scores = Object.entries(answer.scores || {}).map(([name, value]) => name + " " + value.toPrecision(4));
    said.textContent = [answer.model + ": " + answer.predictions[0].label, ...scores].join("; ");
    await explain(file, answer.model, answer.predictions[0].label);
  } catch (error) { fail(error.message); }
}
drop.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", event => { event.preventDefault(); drop.classList.remove("over");
  if (event.dataTransfer.files.length) label(event.dataTransfer.files[0]); });
one("file").addEventListener("change", event => { if (event.target.files.length) label(event.target.files[0]); });
const list = () => models().catch(error => fail(error.message));
one("token").addEventListener("change", event => { token = event.target.value; list(); });
list();
