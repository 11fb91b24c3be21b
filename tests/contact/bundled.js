import { zBifrost } from 'zbifrost';

document.title = new zBifrost('ws://127.0.0.1:9').url;
